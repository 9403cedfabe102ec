"""Weights of languages with which the language that loses most loses less."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..calibration.statistics import CalibrationStatistics
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks, build_chunks
from ..data.hold_back import hold_back
from ..evaluation.divergence import Divergence
from ..modeling.block_source import BlockSource
from ..modeling.blocks import inference_mode
from ..modeling.likelihood import check_measurable
from ..modeling.weights import Weights
from ..processes.group import Processes
from ..pruning.checks import check_held_whole, open_model
from ..pruning.experts_policy import leave_out_experts
from ..pruning.minimax import best_round, follow_losses
from ..pruning.planning import to_calibrate
from ..pruning.scoring import weigh_languages
from ..pruning.sparsity_plan import SparsityPlan
from ..utils import markdown_table, progress_bar
from ..walking.block_by_block import walk_blocks
from ..walking.calibrating import calibrate
from ..walking.deciding import decide, make_plan
from ..walking.editor import WeightEditor
from ..walking.store import HiddenStates, OnDevice
from ..walking.together import Decisions
from ..walking.walk import Known, Walk

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT = 0.25
"""Share of each language's calibration chunks on which losses are measured."""
TOKENS = 256
"""Most tokens of each of these chunks."""
RATE = 1.0


@dataclasses.dataclass(frozen=True)
class WeighedRound:
    """A pruning with some weights of languages.

    Attributes:
        weights: Language to its weight, with a mean of 1.
        losses: Language to the divergence from the dense model's predictions on text that was held back, in nats per
            token; without languages of which nothing could be held back.
    """

    weights: Mapping[str, float]
    losses: Mapping[str, float]

    @property
    def worst(self) -> str:
        """The language that loses most."""
        return max(self.losses, key=lambda language: self.losses[language])

    @property
    def mean(self) -> float:
        """Mean loss over languages."""
        return fmean(self.losses.values())


@dataclasses.dataclass(frozen=True)
class FoundWeights:
    """Weights of languages that were found by pruning several times.

    Attributes:
        rounds: Every round; all languages weigh the same in the first one.
        chosen: Number of the round whose language that loses most loses least, among those whose mean loss is within
            the bound.
    """

    rounds: tuple[WeighedRound, ...]
    chosen: int

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights to choose, for `language_weights`."""
        return self.rounds[self.chosen].weights

    @property
    def note(self) -> str:
        """How the weights were found, in a few words for the record."""
        first, best = self.rounds[0], self.rounds[self.chosen]
        return (
            f"language_weights of round {self.chosen} of {len(self.rounds) - 1} with minimax: on held-back text "
            f"{best.worst!r} diverges most from the dense model, by {best.losses[best.worst]:.4f} nats per token, and "
            f"the mean is {best.mean:.4f} (with equal weights {first.worst!r} {first.losses[first.worst]:.4f}, mean "
            f"{first.mean:.4f})"
        )

    def __str__(self) -> str:
        first, best = self.rounds[0], self.rounds[self.chosen]
        rows = [
            [name, f"{weight:.3f}", *(f"{one.losses[name]:.4f}" if name in one.losses else "" for one in (first, best))]
            for name, weight in best.weights.items()
        ]
        table = markdown_table(["language", "weight", "nats from dense, equal weights", "these weights"], rows)
        return f"{table}\n{self.note}."


def find_language_weights(
    model: "PreTrainedModel",
    dataset: Any,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    config: MWandaConfig | None = None,
    *,
    plan: SparsityPlan | None = None,
    progress: bool = True,
) -> FoundWeights:
    """Finds weights of languages with which the language that loses most loses less.

    A quarter of each language's calibration chunks is held back. With the others the model is pruned as the settings
    say, at first with equal weights; what each language loses is its divergence from the dense model's predictions on
    what was held back. Then weights follow losses (`w · exp(loss / mean − 1)`), the model is made dense and pruned
    anew, `minimax_rounds` times. The round wins in which the largest loss is smallest, among those whose mean loss
    exceeds that of equal weights by no more than `minimax_bound`. `MWandaConfig(language_weights="minimax")` does this
    before pruning.

    Args:
        model: A dense causal language model, wholly in memory; it ends as it was, also after a failure.
        dataset: Calibration data, as for `MWandaPruner.prune`; read once.
        tokenizer: As for `MWandaPruner.prune`.
        config: The settings; its `language_weights` do not count. None for the defaults.
        plan: The sparsity of every block; None to allocate in every round as the settings say.
        progress: Whether to show a progress bar.

    Returns:
        The weights, and what every round lost.

    Raises:
        TypeError: As `MWandaPruner.prune`.
        ValueError: As `MWandaPruner.prune`, or if the model predicts no tokens, is an encoder-decoder, is offloaded or
            shared out among processes, or no language has two chunks.
        FloatingPointError: If weights, activations or predictions are NaN or infinite.
    """
    config = (config or MWandaConfig()).replace(language_weights="minimax")
    if not config.needs_statistics:
        raise ValueError(
            f"criterion={config.criterion!r} with allocation={config.allocation!r} reads no text, so languages weigh "
            "nothing: choose another criterion or allocation."
        )
    weights, source = open_model(model, config, plan)
    chunks = build_chunks(dataset, config, model, tokenizer)
    return weigh_on(model, weights, chunks, config, source, plan, progress=progress)


def weigh_on(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    source: BlockSource,
    plan: SparsityPlan | None = None,
    store: Callable[[], HiddenStates] = OnDevice,
    progress: bool = False,
) -> FoundWeights:
    """`find_language_weights` on text that was read and weights that were found.

    Args:
        model: As there.
        weights: Module path of a block to its weights.
        chunks: Calibration data.
        config: As there.
        source: The blocks.
        plan: As there.
        store: Makes a place for hidden states.
        progress: As there.

    Raises:
        ValueError: As there.
        FloatingPointError: As there.
    """
    _check(model, source)
    left, held = hold_back(chunks, HELD_OUT, config.seed)
    if not held.chunks:
        raise ValueError(
            "language_weights='minimax' measures what languages lose on chunks that it holds back, but no language has "
            "two: raise samples_per_language, lower sequence_length, or give more text."
        )
    most = max(sum(len(part["input_ids"]) for part in parts) for parts in held.chunks.values())
    count = 1 + (config.minimax_rounds if len(chunks.chunks) > 1 else 0)
    now = dict.fromkeys(chunks.chunks, 1.0)
    rounds: list[WeighedRound] = []
    with inference_mode(model):
        divergence = Divergence(model, held, most, TOKENS, config.batch_size)
        seen, activities = to_calibrate(weights, config, plan is not None), [config.activity] if config.activity else []
        statistics = calibrate(model, seen, left, config, source, activities, store=store).statistics
        weights = leave_out_experts(weights, statistics, config)
        for _ in progress_bar(range(count), total=count, description="Weighing languages", show=progress):
            current = config.replace(language_weights=now)
            losses = _losses(model, weights, statistics, left, current, source, plan, store, divergence)
            rounds.append(WeighedRound(now, losses))
            now = follow_losses(now, losses, RATE)
    chosen = best_round([each.losses for each in rounds], config.minimax_bound)
    return FoundWeights(tuple(rounds), chosen)


def _check(model: "PreTrainedModel", source: BlockSource) -> None:
    """Checks that what languages lose can be measured."""
    check_held_whole(model, source, "Weights of languages are found")
    check_measurable(model)
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, for which weights of languages cannot be found: give "
            "language_weights yourself."
        )


def _losses(
    model: "PreTrainedModel",
    weights: Weights,
    statistics: CalibrationStatistics,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    source: BlockSource,
    plan: SparsityPlan | None,
    store: Callable[[], HiddenStates],
    divergence: Divergence,
) -> dict[str, float]:
    """What each language loses if the dense model is pruned so; it is dense again afterwards."""
    known = Known(weights, statistics, source)
    plan = plan or make_plan(known, statistics, config)
    walk: Walk = walk_blocks(model, weights, chunks, config, source, store) if config.works_blockwise else known
    decisions = Decisions(plan, weigh_languages(config, statistics.tokens), config, Processes())
    with WeightEditor(source) as editor:
        with closing(walk.steps(editor)) as steps:
            for _ in decide(steps, decisions, config):
                pass
        losses = divergence.measure_all()
        editor.undo()
    return losses
