"""What calibration learns about a model: sums per matrix and language, which can be merged, saved and loaded."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.language_coverage import LanguageCoverage, coverage_table
from ..storage.outputs import whole_file
from ..utils import abridged, sum_dtype
from ..values import check_types
from .coverage import ExpertCoverage

logger = logging.getLogger(__name__)

FORMAT = "mwanda-statistics"
FORMAT_VERSION = 1
_SENSITIVITY = "row_sensitivity"


@dataclasses.dataclass(frozen=True)
class WeightStatistics:
    """Sums over the calibration tokens that enter one matrix.

    Attributes:
        tokens: `T_l`, shape `(languages,)`, int64.
        square_sum: `Σ_t (X^l_tj)²`, shape `(languages, in)`, float64.
        active: Kind of activity to `a_j^l`, shape `(languages, in)`, float64 counts.
    """

    tokens: Tensor
    square_sum: Tensor
    active: dict[str, Tensor]

    @property
    def mean_square(self) -> Tensor:
        """`m_j^l`, shape `(languages, in)`, float64; 0 for a language without tokens here."""
        return self.square_sum / self.tokens.clamp(min=1)[:, None]

    def of(self, rows: Sequence[int]) -> "WeightStatistics":
        """The sums of some languages, by their numbers."""
        active = {key: counts[rows] for key, counts in self.active.items()}
        return WeightStatistics(self.tokens[rows], self.square_sum[rows], active)


@dataclasses.dataclass(frozen=True)
class CalibrationStatistics:
    """Calibration of one model on several languages.

    One calibration serves every sparsity, criterion and allocation: `save` it, `load` it, `merge` it with calibrations
    on more text or other languages, or `select` some of its languages.

    Attributes:
        weights: Module path of a matrix to its sums.
        coverage: One entry per language, in the order of the rows of the sums.
        fingerprints: Language to the SHA-256 of the token chunks behind its sums, one per merged calibration.
        model: Name or path of the model.
        model_fingerprint: `modeling.fingerprint.model_fingerprint` of the model.
        left_out: Languages of the dataset with too little text to be counted.
        experts: Module paths of the experts of a mixture-of-experts model.
        row_sensitivities: Module path of a matrix to `Σ_t g_ti²`, shape `(languages, out)`, float64, with the gradient
            `g` of the loss at its outputs; empty unless settings with `sensitivity="fisher"` asked for it.
    """

    weights: dict[str, WeightStatistics]
    coverage: tuple[LanguageCoverage, ...]
    fingerprints: dict[str, tuple[str, ...]]
    model: str = ""
    model_fingerprint: str = ""
    left_out: tuple[LanguageCoverage, ...] = ()
    experts: tuple[str, ...] = ()
    row_sensitivities: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages, in the order of the rows of the sums."""
        return tuple(entry.language for entry in self.coverage)

    @property
    def activities(self) -> tuple[str, ...]:
        """Kinds of activity that were counted."""
        return tuple(sorted(next(iter(self.weights.values())).active))

    @property
    def tokens(self) -> dict[str, int]:
        """Calibration tokens per language."""
        return {entry.language: entry.tokens for entry in self.coverage}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the languages and the chunks behind their sums."""
        return hashlib.sha256(json.dumps(self.fingerprints, sort_keys=True).encode()).hexdigest()

    @property
    def expert_tokens(self) -> dict[str, Tensor]:
        """Expert to the tokens per language that were routed to it, shape `(languages,)`."""
        known = set(self.experts)
        found: dict[str, Tensor] = {}
        for name, entry in self.weights.items():
            parts = name.split(".")
            for end in range(len(parts) - 1, 0, -1):
                if (path := ".".join(parts[:end])) in known:
                    found.setdefault(path, entry.tokens)
                    break
        return found

    def __str__(self) -> str:
        everything = sorted((*self.coverage, *self.left_out), key=lambda entry: entry.language)
        lines = [coverage_table(everything), f"{len(self.weights)} matrices"]
        if self.experts:
            lines.append(str(ExpertCoverage(self.expert_tokens, self.languages)))
        return "\n".join(lines)

    def select(self, languages: Sequence[str]) -> "CalibrationStatistics":
        """Selects the statistics of some languages.

        Raises:
            ValueError: If a language was not calibrated on, or none is named.
        """
        if isinstance(languages, str) or not languages:
            raise ValueError(f"languages={languages!r} is not allowed: give a list of at least one language.")
        known, wanted = self.languages, {*languages}
        for language in languages:
            if language not in known:
                raise ValueError(f"Language {language!r} was asked for, but the statistics hold: {abridged(known)}.")
        rows = [index for index, language in enumerate(known) if language in wanted]
        weights = {name: entry.of(rows) for name, entry in self.weights.items()}
        coverage = tuple(self.coverage[row] for row in rows)
        fingerprints = {entry.language: self.fingerprints[entry.language] for entry in coverage}
        sensitivities = {name: sums[rows] for name, sums in self.row_sensitivities.items()}
        return dataclasses.replace(
            self,
            weights=weights,
            coverage=coverage,
            fingerprints=fingerprints,
            left_out=(),
            row_sensitivities=sensitivities,
        )

    def merge(self, other: "CalibrationStatistics") -> "CalibrationStatistics":
        """Adds up two calibrations of the same model, as if it had read both texts in one.

        Raises:
            ValueError: If the matrices or what is known of them differ, or both read some of the same chunks.
        """
        for language in self.fingerprints.keys() & other.fingerprints.keys():
            if set(self.fingerprints[language]) & set(other.fingerprints[language]):
                raise ValueError(
                    f"Both statistics count the same calibration chunks of {language!r}: merge statistics of different "
                    "text."
                )
        if self.model_fingerprint != other.model_fingerprint:
            logger.warning("The statistics come from different models: %r and %r.", self.model, other.model)
        if self.activities != other.activities:
            raise ValueError(
                f"The statistics count different activities: {self.activities or 'none'} and "
                f"{other.activities or 'none'}."
            )
        if {n: e.square_sum.shape[1] for n, e in self.weights.items()} != {
            n: e.square_sum.shape[1] for n, e in other.weights.items()
        }:
            raise ValueError("The statistics belong to different models: their matrices differ in name or width.")
        if self.row_sensitivities.keys() != other.row_sensitivities.keys():
            raise ValueError(
                "Only one of the statistics holds sensitivities of the rows of all matrices: calibrate both with, or "
                "both without, sensitivity='fisher'."
            )
        languages = sorted({*self.languages, *other.languages})
        parts = (self, other)
        number = {language: row for row, language in enumerate(languages)}
        rows = [[number[language] for language in part.languages] for part in parts]

        def add(values: list[Tensor]) -> Tensor:
            total = values[0].new_zeros((len(languages), *values[0].shape[1:]))
            for places, value in zip(rows, values, strict=True):
                total[places] += value
            return total

        weights = {}
        for name in self.weights:
            entries = [part.weights[name] for part in parts]
            weights[name] = WeightStatistics(
                add([e.tokens for e in entries]),
                add([e.square_sum for e in entries]),
                {key: add([e.active[key] for e in entries]) for key in self.activities},
            )
        sensitivities = {name: add([part.row_sensitivities[name] for part in parts]) for name in self.row_sensitivities}
        found: dict[str, list[tuple[Any, ...]]] = {language: [] for language in languages}
        for entry in (*self.coverage, *other.coverage):
            found[entry.language].append((entry.rows, entry.tokens, entry.chunks, entry.empty, entry.unknown))
        coverage = tuple(
            LanguageCoverage(language, *map(_total, zip(*counts, strict=True))) for language, counts in found.items()
        )
        fingerprints = {
            language: tuple(sorted(self.fingerprints.get(language, ()) + other.fingerprints.get(language, ())))
            for language in languages
        }
        return dataclasses.replace(
            self,
            weights=weights,
            coverage=coverage,
            fingerprints=fingerprints,
            left_out=(),
            row_sensitivities=sensitivities,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file; an existing file is replaced only once the new one is complete."""
        header = {
            "version": FORMAT_VERSION,
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "left_out": [dataclasses.asdict(entry) for entry in self.left_out],
            "fingerprints": self.fingerprints,
            "coverage": [dataclasses.asdict(entry) for entry in self.coverage],
            "experts": self.experts,
        }
        with whole_file(Path(path)) as partial:
            sensitivities = {f"{name}:{_SENSITIVITY}": sums for name, sums in self.row_sensitivities.items()}
            save_file({**as_tensors(self.weights), **sensitivities}, partial, {FORMAT: json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CalibrationStatistics":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file does not hold statistics that this version can read.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no statistics file {os.fspath(path)!r}: write one with save().")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if FORMAT not in metadata:
                    raise ValueError(
                        "it is another safetensors file, perhaps the weights of a model. Write statistics with "
                        "save(), or with `optimum-cli mwanda calibrate`"
                    )
                header = json.loads(metadata[FORMAT])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if header["version"] != FORMAT_VERSION:
                raise ValueError(f"its format version is {header['version']}, this library reads {FORMAT_VERSION}")
            sensitivities = {key: tensors.pop(key) for key in [*tensors] if key.endswith(f":{_SENSITIVITY}")}
            loaded = cls(
                from_tensors(tensors),
                tuple(check_types(LanguageCoverage(**entry)) for entry in header["coverage"]),
                {language: tuple(digests) for language, digests in header["fingerprints"].items()},
                header["model"],
                header["model_fingerprint"],
                tuple(check_types(LanguageCoverage(**entry)) for entry in header["left_out"]),
                tuple(header.get("experts", ())),
                {key.rpartition(":")[0]: sums for key, sums in sensitivities.items()},
            )
            return _checked(loaded)
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} holds no calibration statistics that can be read: {error}"
            ) from error


def _checked(statistics: CalibrationStatistics) -> CalibrationStatistics:
    """Refuses sums that no calibration gives: a wrong shape would be broadcast, and NaN compares as false."""
    languages = statistics.languages
    if not languages or len(set(languages)) < len(languages) or statistics.fingerprints.keys() != set(languages):
        raise ValueError(f"coverage names the languages {languages}, and fingerprints {[*statistics.fingerprints]}")
    for name, entry in statistics.weights.items():
        tokens, width = entry.tokens, entry.square_sum.shape[-1:]
        if tokens.dtype != torch.int64 or tokens.shape != (len(languages),) or bool((tokens < 0).any()):
            raise ValueError(f"the tokens of {name!r} are not one count for each of the {len(languages)} languages")
        for kind, sums in {"square_sum": entry.square_sum, **entry.active}.items():
            if not sums.is_floating_point() or sums.shape != (len(languages), *width):
                raise ValueError(f"{kind} of {name!r} has the shape {tuple(sums.shape)}, and not a row per language")
            if not bool((torch.isfinite(sums) & (sums >= 0)).all()):
                raise ValueError(f"{kind} of {name!r} holds a sum that is negative, NaN or infinite")
            if kind != "square_sum" and bool((sums > tokens[:, None]).any()):
                raise ValueError(f"{kind} of {name!r} counts more than there are tokens")
            if bool((sums[tokens == 0] > 0).any()):
                raise ValueError(f"{kind} of {name!r} holds sums over no tokens")
    for name, sums in statistics.row_sensitivities.items():
        if not sums.is_floating_point() or sums.dim() != 2 or len(sums) != len(languages):
            raise ValueError(
                f"the sensitivities of {name!r} have the shape {tuple(sums.shape)}, not a row per language"
            )
        if not bool((torch.isfinite(sums) & (sums >= 0)).all()):
            raise ValueError(f"the sensitivities of {name!r} hold a sum that is negative, NaN or infinite")
    return check_types(statistics)


def _total(counts: Sequence[int | None]) -> Any:
    """The sum; None if one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def as_tensors(weights: Mapping[str, WeightStatistics]) -> dict[str, Tensor]:
    """The sums of some matrices, as a safetensors file holds them: those that matrices share, for each of them."""
    tensors = {}
    for name, entry in weights.items():
        tensors[f"{name}:tokens"] = entry.tokens
        tensors[f"{name}:square_sum"] = entry.square_sum
        for key, count in entry.active.items():
            tensors[f"{name}:active:{key}"] = count
    first = {tensor.data_ptr(): key for key, tensor in reversed(tensors.items())}
    return {
        key: tensor.contiguous() if first[tensor.data_ptr()] == key else tensor.clone()
        for key, tensor in tensors.items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, WeightStatistics]:
    """The sums of some matrices out of what `as_tensors` gave."""
    parts: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, kind, *activity = key.split(":")
        entry = parts.setdefault(name, {"active": {}})
        if activity:
            entry["active"][activity[0]] = tensor
        else:
            entry[kind] = tensor
    return {name: WeightStatistics(**entry) for name, entry in parts.items()}


def new_sums(languages: int, in_features: int, activities: Sequence[str], device: torch.device) -> WeightStatistics:
    """Empty sums on a device; float32 where the device has no float64."""
    zeros = torch.zeros(languages, in_features, dtype=sum_dtype(device), device=device)
    return WeightStatistics(
        torch.zeros(languages, dtype=torch.int64), zeros, {key: zeros.clone() for key in activities}
    )
