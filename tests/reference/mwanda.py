"""Slow reference for `docs/method.md`, written from that document alone; the tests use it as an oracle."""

import copy
import math
import statistics
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Settings:
    """Settings of the method, under the names and values of `docs/method.md`."""

    sparsity: float
    _: KW_ONLY
    criterion: str
    pattern: str = "unstructured"
    base: str = "wanda"
    ria_exponent: float = 0.5
    variance: str = "none"
    variance_weight: float = 0.5
    activation: str = "none"
    activation_threshold: float = 0.1
    activation_exponent: float = 0.5
    group: str = "row"
    allocation: str = "uniform"
    allocation_strength: float = 0.04
    cwl_direction: str = "shared"
    owl_multiplier: float = 5.0
    min_block_sparsity: float = 0.0
    max_block_sparsity: float = 0.95
    language_weights: str | dict[str, float] = "equal"
    language_temperature: float = 1.0
    calibration: str = "dense"
    batch_size: int = 4


@dataclass
class LanguageStats:
    """Sums over the tokens of one language that enter one matrix.

    Args:
        square_sum: Sum over the tokens of the squared input, float64, one entry per input channel.
        active_count: Number of tokens on which each channel is active (zeros with `activation="none"`).
        tokens: Number of tokens.
    """

    square_sum: np.ndarray
    active_count: np.ndarray
    tokens: int


MatrixStats = dict[str, LanguageStats]  # keyed by language
Chunks = dict[str, torch.Tensor]  # keyed by language

# ---------------------------------------------------------------------------------------------- the model


def _blocks(model: nn.Module) -> list[dict[str, nn.Module]]:
    """The prunable modules of every block, by their full names."""
    count = len(model.transformer.h) if hasattr(model, "transformer") else len(model.model.layers)
    prefix = "transformer.h" if hasattr(model, "transformer") else "model.layers"
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [{n: m for n, m in modules if n.startswith(f"{prefix}.{b}.")} for b in range(count)]


def _weight(module: nn.Module) -> np.ndarray:
    """A float32 copy of the weight in the shape (out, in)."""
    weight = module.weight.detach().float().numpy()
    return (weight.T if isinstance(module, Conv1D) else weight).copy()


def _set_weight(module: nn.Module, weight: np.ndarray) -> None:
    stored = weight.T if isinstance(module, Conv1D) else weight
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(stored.copy()))


def _active(x: torch.Tensor, settings: Settings) -> torch.Tensor:
    if settings.activation == "none":
        return torch.zeros_like(x, dtype=torch.bool)
    if settings.activation == "positive":
        return x > 0
    if settings.activation == "above_rms":
        rms = (x * x).mean(dim=1, keepdim=True).sqrt()
        return x.abs() > settings.activation_threshold * rms
    raise ValueError(f"unknown activation {settings.activation!r}")


def _collect(
    model: nn.Module, modules: dict[str, nn.Module], chunks: Chunks, settings: Settings
) -> dict[str, MatrixStats]:
    """Run the whole model over all chunks and sum up what enters the given modules."""
    stats: dict[str, MatrixStats] = {name: {} for name in modules}
    for language in sorted(chunks):
        for name, module in modules.items():
            width = _weight(module).shape[1]
            stats[name][language] = LanguageStats(np.zeros(width), np.zeros(width), 0)

        def hook(name: str, inputs: tuple[torch.Tensor, ...], language: str = language) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            entry = stats[name][language]
            entry.square_sum += np.sum(x.numpy().astype(np.float64) ** 2, axis=0)
            entry.active_count += np.sum(_active(x, settings).numpy(), axis=0)
            entry.tokens += x.shape[0]

        handles = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: hook(name, inputs))
            for name, module in modules.items()
        ]
        with torch.no_grad():
            for start in range(0, len(chunks[language]), settings.batch_size):
                model(input_ids=chunks[language][start : start + settings.batch_size], use_cache=False)
        for handle in handles:
            handle.remove()
    return stats


# ---------------------------------------------------------------------------------------------- the notation table


def _language_weights(stats: MatrixStats, settings: Settings) -> dict[str, float]:
    raw = {}
    for language in sorted(stats):
        tokens = stats[language].tokens
        if isinstance(settings.language_weights, dict):
            raw[language] = float(settings.language_weights.get(language, 1.0))
        elif settings.language_weights == "equal":
            raw[language] = 1.0
        elif settings.language_weights == "proportional":
            raw[language] = float(tokens)
        elif settings.language_weights == "temperature":
            raw[language] = float(tokens) ** (1.0 / settings.language_temperature)
        else:
            raise ValueError(f"unknown language_weights {settings.language_weights!r}")
    total = sum(raw.values())
    return {language: value / total for language, value in raw.items()}


def _mean_square(entry: LanguageStats) -> np.ndarray:
    return entry.square_sum / entry.tokens


def _rms(entry: LanguageStats) -> np.ndarray:
    return np.sqrt(_mean_square(entry))


def _pooled_norm(stats: MatrixStats, settings: Settings) -> np.ndarray:
    weights = _language_weights(stats, settings)
    return np.sqrt(sum(weights[lang] * _mean_square(stats[lang]) for lang in sorted(stats)))


def _cross_lingual_variance(stats: MatrixStats, settings: Settings) -> np.ndarray:
    weights = _language_weights(stats, settings)
    mean = sum(weights[lang] * _rms(stats[lang]) for lang in sorted(stats))
    return sum(weights[lang] * (_rms(stats[lang]) - mean) ** 2 for lang in sorted(stats))


def _activation_probability(stats: MatrixStats, settings: Settings) -> np.ndarray:
    weights = _language_weights(stats, settings)
    return sum(weights[lang] * stats[lang].active_count / stats[lang].tokens for lang in sorted(stats))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if np.all(x == x[0]) or np.all(y == y[0]):
        return 0.0
    dx, dy = x - x.mean(), y - y.mean()
    return float(np.sum(dx * dy) / (math.sqrt(np.sum(dx * dx)) * math.sqrt(np.sum(dy * dy))))


def _cross_lingual_correlation(matrices: list[MatrixStats]) -> float:
    means = []
    for stats in matrices:
        pairs = list(combinations(sorted(stats), 2))
        if not pairs:
            raise ValueError("the cross-lingual correlation needs at least two languages")
        means.append(sum(_pearson(_rms(stats[a]), _rms(stats[b])) for a, b in pairs) / len(pairs))
    return sum(means) / len(means)


# ---------------------------------------------------------------------------------------------- scores and masks


def _cross_lingual_norm(stats: MatrixStats, settings: Settings) -> np.ndarray:
    """The term n' of the document."""
    norm, variance, weight = (
        _pooled_norm(stats, settings),
        _cross_lingual_variance(stats, settings),
        settings.variance_weight,
    )
    if settings.variance == "none":
        return norm
    if settings.variance == "std":
        return norm + weight * np.sqrt(variance)
    if settings.variance == "variance":
        return norm + weight * variance
    if settings.variance == "relative_variance":
        return np.array([n + weight * v / n if n != 0 else 0.0 for n, v in zip(norm, variance, strict=True)])
    raise ValueError(f"unknown variance {settings.variance!r}")


def reference_scores(weight: np.ndarray, stats: MatrixStats, settings: Settings) -> np.ndarray:
    """Score every weight of one matrix; the lowest are pruned.

    Args:
        weight: Weight of shape (out, in), float32.
        stats: Statistics of the input of the matrix, by language.
        settings: Settings of the method.

    Returns:
        Scores of shape (out, in), float32.
    """
    magnitude = np.abs(weight.astype(np.float32))
    if settings.criterion == "magnitude":
        return magnitude
    if settings.criterion in ("wanda", "ria"):
        base, factor = settings.criterion, _pooled_norm(stats, settings)
    elif settings.criterion == "mwanda":
        base, factor = settings.base, _cross_lingual_norm(stats, settings)
    else:
        raise ValueError(f"unknown criterion {settings.criterion!r}")
    if base == "ria":
        factor = factor**settings.ria_exponent
    elif base != "wanda":
        raise ValueError(f"unknown base {base!r}")
    if settings.criterion == "mwanda" and settings.activation != "none":
        factor = factor * _activation_probability(stats, settings) ** settings.activation_exponent
    factor = factor.astype(np.float32)
    if base == "wanda":
        return magnitude * factor[None, :]
    column = magnitude.astype(np.float64).sum(axis=0).astype(np.float32)
    row = magnitude.astype(np.float64).sum(axis=1).astype(np.float32)
    column[column == 0] = 1
    row[row == 0] = 1
    return (magnitude / column[None, :] + magnitude / row[:, None]) * factor[None, :]


def _keep_all_but_lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Keep mask of a vector of scores; of equal scores the lower index is pruned first."""
    keep = np.ones(len(scores), dtype=bool)
    keep[np.argsort(scores, kind="stable")[:count]] = False
    return keep


def _kept_of(settings: Settings) -> tuple[int, int] | None:
    """(N, M) of an N:M pattern, None for the unstructured one."""
    if settings.pattern == "unstructured":
        return None
    n, m = settings.pattern.split(":")
    return int(n), int(m)


def _mask(scores: np.ndarray, sparsity: float, settings: Settings) -> np.ndarray:
    rows, columns = scores.shape
    kept_of = _kept_of(settings)
    if kept_of is not None:
        n, m = kept_of
        if columns % m:
            raise ValueError(f"{columns} inputs are not a multiple of {m}")
        return _keep_runs(scores.reshape(-1, m), m - n).reshape(rows, columns)
    if settings.group == "row":
        return _keep_runs(scores, math.floor(sparsity * columns + 0.5))
    if settings.group == "matrix":
        return _keep_runs(scores.reshape(1, -1), math.floor(sparsity * (rows * columns) + 0.5)).reshape(rows, columns)
    raise ValueError(f"unknown group {settings.group!r}")


def _keep_runs(runs: np.ndarray, count: int) -> np.ndarray:
    return np.stack([_keep_all_but_lowest(run, count) for run in runs])


# ---------------------------------------------------------------------------------------------- allocation


def _outlier_percentage(weights: list[np.ndarray], matrices: list[MatrixStats], settings: Settings) -> float:
    entries = np.concatenate(
        [
            (np.abs(weight) * _pooled_norm(stats, settings).astype(np.float32)[None, :]).ravel()
            for weight, stats in zip(weights, matrices, strict=True)
        ]
    ).astype(np.float64)  # exact: the entries are float32 numbers
    return 100.0 * float(np.sum(entries > settings.owl_multiplier * entries.mean())) / len(entries)


def _relative(importance: list[Fraction]) -> list[Fraction]:
    span = max(importance) - min(importance)
    return [(each - min(importance)) / span if span else Fraction(0) for each in importance]


def _outlying(importance: list[Fraction]) -> list[Fraction]:
    """0 up to 3/2 times the median, 1 from 5/2 times the median on, linear between."""
    median = statistics.median(importance)
    if median == 0:
        return [Fraction(int(each > 0)) for each in importance]
    return [min(max(each / median - Fraction(3, 2), Fraction(0)), Fraction(1)) for each in importance]


def _allocate(importance: list[float], sizes: list[int], settings: Settings) -> list[float]:
    """Solve Σ P_b · clip(s_b + c, low, high) = S · Σ P_b for the constant c in exact rational arithmetic."""
    target, strength = Fraction(settings.sparsity), Fraction(settings.allocation_strength)
    low, high = Fraction(settings.min_block_sparsity), Fraction(settings.max_block_sparsity)
    if not low <= target <= high:
        raise ValueError("the target sparsity lies outside the bounds of a block")
    exact = [Fraction(d) for d in importance]
    protection = _outlying(exact) if settings.allocation == "outliers" else _relative(exact)
    start = [target - 2 * strength * share for share in protection]

    def clipped(shift: Fraction) -> list[Fraction]:
        return [min(max(s + shift, low), high) for s in start]

    def excess(shift: Fraction) -> Fraction:
        return sum(size * (s - target) for size, s in zip(sizes, clipped(shift), strict=True))

    # The excess grows with the shift and is linear between the shifts at which a block reaches a bound.
    knots = sorted({bound - s for bound in (low, high) for s in start})
    left = max(knot for knot in knots if excess(knot) <= 0)
    right = min(knot for knot in knots if excess(knot) >= 0)
    shift = left
    if excess(left) < 0:
        shift = left + (right - left) * -excess(left) / (excess(right) - excess(left))
    assert excess(shift) == 0
    return [round(float(s), 12) for s in clipped(shift)]


def _plan(blocks: list[dict[str, nn.Module]], dense: dict[str, MatrixStats], settings: Settings) -> list[float]:
    """Sparsity of every block from the statistics of the dense run."""
    kept_of = _kept_of(settings)
    if kept_of is not None:
        return [1.0 - kept_of[0] / kept_of[1]] * len(blocks)
    if settings.allocation == "uniform":
        return [settings.sparsity] * len(blocks)
    importance = []
    for block in blocks:
        matrices = [dense[name] for name in block]
        if settings.allocation in ("owl", "outliers"):
            importance.append(_outlier_percentage([_weight(m) for m in block.values()], matrices, settings))
        elif settings.allocation == "cwl":
            sign = {"shared": 1.0, "specific": -1.0}[settings.cwl_direction]
            importance.append(sign * _cross_lingual_correlation(matrices))
        else:
            raise ValueError(f"unknown allocation {settings.allocation!r}")
    return _allocate(importance, [sum(_weight(m).size for m in block.values()) for block in blocks], settings)


# ---------------------------------------------------------------------------------------------- entry points


def _copy(model: nn.Module) -> tuple[nn.Module, list[dict[str, nn.Module]]]:
    """An own float32 copy of the model, and its blocks."""
    model = copy.deepcopy(model).float().eval()
    return model, _blocks(model)


def reference_statistics(model: nn.Module, chunks: Chunks, settings: Settings) -> dict[str, MatrixStats]:
    """Sum up what enters every prunable matrix of the unpruned model.

    Args:
        model: Decoder-only model; it is not changed.
        chunks: Token ids of shape (chunks, length), by language.
        settings: Settings of the method, of which `activation`, its threshold and `batch_size` matter.

    Returns:
        The sums, by module name and language.
    """
    model, blocks = _copy(model)
    return _collect(model, {name: module for block in blocks for name, module in block.items()}, chunks, settings)


def reference_plan(model: nn.Module, chunks: Chunks, settings: Settings) -> list[float]:
    """Compute the sparsity of every block.

    Args:
        model: Decoder-only model; it is not changed.
        chunks: Token ids of shape (chunks, length), by language.
        settings: Settings of the method.

    Returns:
        One sparsity per block, in order.
    """
    return _plan(_copy(model)[1], reference_statistics(model, chunks, settings), settings)


def reference_masks(
    model: nn.Module, chunks: Chunks, settings: Settings, dense: dict[str, MatrixStats] | None = None
) -> dict[str, np.ndarray]:
    """Compute the keep masks of every prunable matrix.

    Args:
        model: Decoder-only model; it is not changed.
        chunks: Token ids of shape (chunks, length), by language.
        settings: Settings of the method.
        dense: What `reference_statistics` gives for the same, if it is known.

    Returns:
        Boolean masks of shape (out, in), True where a weight is kept, by module name.
    """
    if dense is None:
        dense = reference_statistics(model, chunks, settings)
    model, blocks = _copy(model)
    plan = _plan(blocks, dense, settings)
    masks = {}
    for block, sparsity in zip(blocks, plan, strict=True):
        if settings.calibration == "dense":
            stats = dense
        elif settings.calibration == "sequential":
            stats = _collect(model, block, chunks, settings)  # the blocks before this one are pruned by now
        else:
            raise ValueError(f"unknown calibration {settings.calibration!r}")
        for name, module in block.items():
            masks[name] = _mask(reference_scores(_weight(module), stats[name], settings), sparsity, settings)
        for name, module in block.items():
            _set_weight(module, np.where(masks[name], _weight(module), np.float32(0)))
    return masks
