"""`MWandaPruner`: calibrate, allocate, apply."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .calibration.collector import StatisticsCollector
from .calibration.statistics import CalibrationStatistics, WeightStatistics
from .configuration import MWandaConfig
from .data.chunks import CalibrationChunks, build_chunks
from .modeling.bits import pack_bits, unpack_bits
from .modeling.blocks import find_blocks, inference_mode, run_blocks
from .modeling.fingerprint import model_fingerprint
from .modeling.interrupts import check_interrupts, deferred_interrupts
from .modeling.weights import PrunableWeight, find_weights
from .pruning.allocation import SparsityPlan
from .pruning.checks import check_pattern, check_plan, check_statistics
from .pruning.experts_policy import apply_experts_policy
from .pruning.planning import make_plan
from .pruning.scoring import compute_mask, weigh_languages
from .record.build import build_record
from .utils import progress_bar
from .walking.blockwise import BlockwisePruning
from .walking.editor import WeightEditor

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .evaluation.report import PerplexityComparison

Weights = dict[str, list[PrunableWeight]]


class MWandaPruner:
    """Prunes a multilingual language model in one shot.

    `prune` does everything. Its parts can be used apart: `calibrate` once, then look at the result of `allocate` and
    `apply` the same statistics at many sparsities and with many criteria.

    If anything fails or is interrupted, the model is left as it was. (An interrupt that arrives when the last mask is
    written is raised after pruning has been completed.)

    Args:
        config: Settings; the defaults if None.
        progress: Whether to show progress bars.
        restore_on_failure: Whether to keep the removed weights, packed on the CPU, until pruning has succeeded. Without
            it less memory is needed, and a failure, an interrupt too, raises `PartiallyPrunedError`.

    Example:
        ```python
        pruner = MWandaPruner(MWandaConfig(sparsity=0.5))
        model = pruner.prune(model, dataset, tokenizer=tokenizer)
        ```
    """

    def __init__(
        self, config: MWandaConfig | None = None, *, progress: bool = True, restore_on_failure: bool = True
    ) -> None:
        if config is not None and not isinstance(config, MWandaConfig):
            raise TypeError(
                f"config is a {type(config).__name__}: pass an MWandaConfig, or MWandaConfig.from_dict(...)."
            )
        self.config = config or MWandaConfig()
        self.progress = progress
        self.restore_on_failure = restore_on_failure

    def prune(
        self,
        model: "PreTrainedModel",
        dataset: Any = None,
        tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    ) -> "PreTrainedModel":
        """Calibrates on a multilingual dataset and prunes the model in place.

        Args:
            model: A causal language model.
            dataset: `datasets.Dataset` or `IterableDataset` with a language column and either texts or `input_ids`, a
                dict of language to texts, or a list of rows. Magnitude pruning with uniform allocation needs none.
            tokenizer: Tokenizer for texts, or its name or path. None: the one saved beside the model.

        Returns:
            The same model, pruned.

        Raises:
            TypeError: If the dataset or its columns have a type that cannot be read.
            ValueError: If the settings, the data and the model do not fit together.
            FloatingPointError: If weights or activations are NaN or infinite.
        """
        weights = self._find_weights(model)
        if not self.config.needs_statistics:
            return self.apply(model)
        if dataset is None:
            raise ValueError(
                f"criterion={self.config.criterion!r} with allocation={self.config.allocation!r} needs calibration "
                "data: pass a dataset."
            )
        if not self.config.works_blockwise:
            return self.apply(model, self.calibrate(model, dataset, tokenizer))
        return self._prune_blockwise(model, weights, build_chunks(dataset, self.config, model, tokenizer))

    def calibrate(
        self,
        model: "PreTrainedModel",
        dataset: Any,
        tokenizer: "PreTrainedTokenizerBase | str | None" = None,
        also_for: Iterable[MWandaConfig] = (),
    ) -> CalibrationStatistics:
        """Runs the calibration text once through the blocks of the dense model and returns what was learnt.

        Args:
            model: A causal language model; it is not changed.
            dataset: As for `prune`.
            tokenizer: As for `prune`.
            also_for: Other settings that the statistics shall serve, where these count other kinds of activity.

        Returns:
            Statistics per matrix and language.

        Raises:
            TypeError: As for `prune`.
            ValueError: As for `prune`.
            FloatingPointError: If activations are NaN or infinite.
        """
        weights = self._find_weights(model)
        chunks = build_chunks(dataset, self.config, model, tokenizer)
        collector = self._collector(_flat(weights), chunks, also_for)
        with inference_mode(model), collector:
            blocks = find_blocks(model, self.config.blocks)
            for inputs in self._batches(chunks, collector):
                run_blocks(model, blocks, inputs)
        return _statistics(model, weights, collector.finish(), chunks)

    def allocate(self, model: "PreTrainedModel", statistics: CalibrationStatistics | None = None) -> SparsityPlan:
        """Decides the sparsity of every block; nothing is changed.

        Args:
            model: The model.
            statistics: Result of `calibrate`; not needed for the uniform allocation.

        Returns:
            A plan to look at, to change, and to pass to `apply`.

        Raises:
            ValueError: If the statistics are missing or do not fit the model.
        """
        weights = self._find_weights(model)
        statistics = check_statistics(statistics, model_fingerprint(model), weights, self.config)
        if statistics is not None:
            weights, statistics = apply_experts_policy(weights, statistics, self.config)
        return make_plan(weights, statistics, self.config)

    def apply(
        self,
        model: "PreTrainedModel",
        statistics: CalibrationStatistics | None = None,
        plan: SparsityPlan | None = None,
    ) -> "PreTrainedModel":
        """Prunes the model in place with statistics of the dense model.

        Nothing is written before every mask is known.

        Args:
            model: The model that was calibrated.
            statistics: Result of `calibrate`; not needed for magnitude pruning with uniform allocation.
            plan: Result of `allocate`, perhaps changed; None to allocate now.

        Returns:
            The same model, pruned.

        Raises:
            ValueError: If the statistics are missing or do not fit the model, or the settings ask for sequential
                calibration, which needs `prune`.
            FloatingPointError: If weights are NaN or infinite.
        """
        if self.config.works_blockwise:
            raise ValueError(
                "calibration='sequential', refinement and reconstruction look at each block while they prune: call "
                "prune(model, dataset), or set calibration='dense', refinement='none' and reconstruction='none'."
            )
        weights = self._find_weights(model)
        fingerprint = model_fingerprint(model)
        statistics = check_statistics(statistics, fingerprint, weights, self.config)
        settled = statistics
        if statistics is not None:
            weights, settled = apply_experts_policy(weights, statistics, self.config)
        plan = make_plan(weights, settled, self.config) if plan is None else check_plan(plan, weights, self.config)
        shares = None if statistics is None else weigh_languages(self.config, statistics.tokens)
        masks: list[tuple[PrunableWeight, Tensor]] = []
        for weight in self._bar(_flat(weights), len(_flat(weights))):
            entry = None if settled is None else settled.weights.get(weight.name)
            pruned = compute_mask(weight, entry, shares, plan[weight.block], self.config)
            masks.append((weight, pack_bits(pruned).cpu()))
        with deferred_interrupts(), WeightEditor(self.restore_on_failure) as editor:
            for weight, packed in masks:
                editor.zero(weight, unpack_bits(packed.to(weight.matrix.device), weight.matrix.shape))
                check_interrupts()
            record = build_record(model, self.config, weights, plan, statistics, fingerprint)
            check_interrupts()
            model.config.mwanda_config = record
        return model

    def push_to_hub(
        self,
        model: "PreTrainedModel",
        repo_id: str,
        *,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        report: "PerplexityComparison | None" = None,
        **options: Any,
    ) -> "CommitInfo":
        """Pushes a pruned model with its card to the Hub, in one commit.

        Args:
            model: A pruned model.
            repo_id: Repository, made if need be.
            tokenizer: Pushed with the model if given.
            report: What pruning cost per language; goes into the card.
            **options: As for `optimum_mwanda.push_to_hub`: `private`, `revision`, `create_pr`, `token`, ...

        Returns:
            The commit.

        Raises:
            ValueError: If the model carries no sparsity record.
        """
        from .sharing.hub import push_to_hub

        return push_to_hub(model, repo_id, tokenizer=tokenizer, report=report, **options)

    def _prune_blockwise(
        self, model: "PreTrainedModel", weights: Weights, chunks: CalibrationChunks
    ) -> "PreTrainedModel":
        """Prunes block by block, after a dense pass for the allocation."""
        with inference_mode(model):
            with self._collector(self._watched(weights), chunks) as dense:
                pruning = BlockwisePruning(model, self.config, chunks, self._batches(chunks, dense))
            statistics = _statistics(model, weights, dense.finish(), chunks)
            weights, settled = apply_experts_policy(weights, statistics, self.config)
            plan = make_plan(weights, settled, self.config)
            with WeightEditor(self.restore_on_failure) as editor:
                for _ in self._bar(pruning.run(weights, plan, editor), len(_flat(weights))):
                    pass
                record = build_record(model, self.config, weights, plan, statistics, statistics.model_fingerprint)
                check_interrupts()
                model.config.mwanda_config = record
        return model

    def _watched(self, weights: Weights) -> list[PrunableWeight]:
        """What the dense pass before a blockwise pruning looks at: all for an allocation, else experts only."""
        return [w for w in _flat(weights) if self.config.allocation != "uniform" or w.expert_name is not None]

    def _find_weights(self, model: "PreTrainedModel") -> Weights:
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise TypeError(f"model is a {type(model).__name__}: pass a loaded transformers model.")
        if hasattr(model, "peft_config"):
            raise ValueError(
                "The model carries an adapter, whose matrices are not to be pruned: merge it (merge_and_unload) or "
                "unload it first."
            )
        weights = find_weights(find_blocks(model, self.config.blocks), self.config.include, self.config.exclude)
        check_pattern(weights, self.config)
        return weights

    def _collector(
        self, weights: Sequence[PrunableWeight], chunks: CalibrationChunks, also_for: Iterable[MWandaConfig] = ()
    ) -> StatisticsCollector:
        activities = {config.activity for config in (self.config, *also_for) if config.activity is not None}
        return StatisticsCollector(weights, list(chunks.chunks), sorted(activities))

    def _batches(self, chunks: CalibrationChunks, collector: StatisticsCollector) -> Iterable[dict[str, Tensor]]:
        """Calibration batches, announcing the language of each to the collector."""
        size = self.config.batch_size
        batches = progress_bar(
            chunks.batches(size), total=chunks.number_of_batches(size), description="Calibrating", show=self.progress
        )
        for language, inputs in batches:
            collector.start(language)
            yield inputs

    def _bar(self, weights: Iterable[PrunableWeight], total: int) -> Iterable[PrunableWeight]:
        return progress_bar(weights, total=total, description="Pruning", show=self.progress)


def _flat(weights: Weights) -> list[PrunableWeight]:
    return [weight for block in weights.values() for weight in block]


def _statistics(
    model: "PreTrainedModel", weights: Weights, sums: dict[str, WeightStatistics], chunks: CalibrationChunks
) -> CalibrationStatistics:
    experts = dict.fromkeys(w.expert_name for w in _flat(weights) if w.expert_name is not None)
    return CalibrationStatistics(
        sums,
        coverage=tuple(entry for entry in chunks.coverage if entry.chunks),
        fingerprints={language: (digest,) for language, digest in chunks.fingerprints.items()},
        model=getattr(model, "name_or_path", ""),
        model_fingerprint=model_fingerprint(model),
        left_out=tuple(entry for entry in chunks.coverage if not entry.chunks),
        experts=tuple(experts),
    )
