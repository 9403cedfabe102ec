"""`MWandaPruner`: calibrate, allocate, apply."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from .calibration.reduction import check_same, deal
from .calibration.statistics import CalibrationStatistics
from .configuration import MWandaConfig
from .data.chunks import CalibrationChunks, LanguageCoverage, build_chunks
from .modeling.blocks import find_blocks, inference_mode
from .modeling.compiled import check_not_compiled
from .modeling.fingerprint import model_fingerprint
from .modeling.interrupts import check_interrupts
from .modeling.quantized import check_dense, forget_dequantization
from .modeling.sharding import check_sharing, gathered
from .modeling.weights import PrunableWeight, Weights, find_weights, flat
from .processes.group import current, sharing
from .pruning.allocation import SparsityPlan
from .pruning.checks import check_pattern, check_plan, check_statistics
from .pruning.experts_policy import leave_out_experts, settle
from .pruning.planning import block_importance, share_out
from .pruning.scoring import weigh_languages
from .record.attachment import attach_record
from .record.build import build_record
from .registry import ALLOCATIONS
from .utils import progress_bar
from .walking.block_by_block import BlockByBlock
from .walking.calibrating import calibrate
from .walking.editor import WeightEditor
from .walking.store import check_activations, make_store
from .walking.together import Decisions
from .walking.walk import AllAtOnce, Step, Walk, check_resident

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .evaluation.report import PerplexityComparison


logger = logging.getLogger(__name__)

_MORE_ZEROS = 0.005
"""By how much the share of zeros may exceed what was asked for; where rows are short, it is half a weight per row."""


class MWandaPruner:
    """Prunes a multilingual language model in one shot.

    `prune` does everything. Its parts can be used separately: `calibrate` once, look at the result of `allocate`, and
    `apply` the same statistics at many sparsities and with many criteria.

    If anything fails or is interrupted, the model is left as it was. (An interrupt that arrives while the last mask is
    written is raised after pruning is complete.)

    Args:
        config: Settings; None for the defaults.
        progress: Whether to show progress bars.
        restore_on_failure: Whether to keep the removed weights, packed on the CPU, until pruning has succeeded. False
            needs less memory, but a failure or interrupt then raises `PartiallyPrunedError`.
        activations: Where to keep the hidden states of the calibration batches while blocks are pruned one after the
            other (sequential calibration, refinement, reconstruction): `"device"` leaves them on the device of the
            blocks, `"cpu"` moves them to the machine's memory, and a folder holds them in a memory-mapped file, which
            is gone afterwards. The result is the same.

    Attributes:
        coverage: Rows, tokens and chunks per language of the text that was read last; empty before that.

    Example:
        ```python
        pruner = MWandaPruner(MWandaConfig(sparsity=0.5))
        model = pruner.prune(model, dataset, tokenizer=tokenizer)
        ```
    """

    def __init__(
        self,
        config: MWandaConfig | None = None,
        *,
        progress: bool = True,
        restore_on_failure: bool = True,
        activations: str | os.PathLike[str] = "device",
    ) -> None:
        if config is not None and not isinstance(config, MWandaConfig):
            raise TypeError(
                f"config is a {type(config).__name__}: pass an MWandaConfig, or MWandaConfig.from_dict(...)."
            )
        check_activations(activations)
        self.config = config or MWandaConfig()
        self.progress = progress
        self.restore_on_failure = restore_on_failure
        self.activations = activations
        self.coverage: tuple[LanguageCoverage, ...] = ()

    @sharing()
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
                dict of language to texts, or a list of rows. Not needed for magnitude pruning with uniform allocation.
            tokenizer: Tokenizer for texts, or its name or path. None: the one saved beside the model.

        Returns:
            The same model, pruned.

        Raises:
            TypeError: If the dataset or its columns have a type that cannot be read.
            ValueError: If the settings, the data and the model do not fit together.
            FloatingPointError: If weights or activations are NaN or infinite.
        """
        if not self.config.needs_statistics:
            return self.apply(model)
        if dataset is None:
            raise ValueError(
                f"criterion={self.config.criterion!r} with allocation={self.config.allocation!r} needs calibration "
                "data: pass a dataset."
            )
        weights = self._find_weights(model)
        chunks = self._read(model, dataset, tokenizer)
        watched = flat(weights)
        if self.config.works_blockwise and not ALLOCATIONS[str(self.config.allocation)].needs_data:
            # The walk looks at each block itself; from the dense model, only the experts policy needs statistics.
            watched = [weight for weight in watched if weight.expert_name is not None]
        statistics = self._calibrate(model, watched, chunks)
        known = AllAtOnce(self._reached(weights, statistics), statistics)
        plan = self._plan(known, statistics)
        walk = self._block_by_block(model, known.weights, chunks) if self.config.works_blockwise else known
        return self._run(model, walk, plan, statistics, statistics.model_fingerprint)

    @sharing()
    def calibrate(
        self,
        model: "PreTrainedModel",
        dataset: Any,
        tokenizer: "PreTrainedTokenizerBase | str | None" = None,
        also_for: Iterable[MWandaConfig] = (),
    ) -> CalibrationStatistics:
        """Runs the calibration text once through the blocks of the dense model and returns the statistics.

        Args:
            model: A causal language model; it is not changed.
            dataset: As for `prune`.
            tokenizer: As for `prune`.
            also_for: Other settings to use the statistics with, in case they count other kinds of activity.

        Returns:
            Statistics per matrix and language.

        Raises:
            TypeError: As for `prune`.
            ValueError: As for `prune`.
            FloatingPointError: If activations are NaN or infinite.
        """
        weights = self._find_weights(model)
        chunks = self._read(model, dataset, tokenizer)
        return self._calibrate(model, flat(weights), chunks, also_for)

    def allocate(self, model: "PreTrainedModel", statistics: CalibrationStatistics | None = None) -> SparsityPlan:
        """Decides the sparsity of every block; changes nothing.

        Args:
            model: The model.
            statistics: Result of `calibrate`; not needed for the uniform allocation.

        Returns:
            A plan that you can look at, change, and pass to `apply`.

        Raises:
            ValueError: If the statistics are missing or do not fit the model.
        """
        weights = self._find_weights(model)
        statistics = check_statistics(statistics, model_fingerprint(model), weights, self.config)
        return self._plan(AllAtOnce(self._reached(weights, statistics), statistics), statistics)

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
        walk = AllAtOnce(self._reached(weights, statistics), statistics)
        if plan is None:
            plan = self._plan(walk, statistics)
        return self._run(model, walk, check_plan(plan, walk.weights, self.config), statistics, fingerprint)

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
            repo_id: Repository; created if it does not exist.
            tokenizer: Pushed with the model if given.
            report: What pruning cost per language, for the card.
            **options: As for `optimum_mwanda.push_to_hub`: `private`, `revision`, `create_pr`, `token`, ...

        Returns:
            The commit.

        Raises:
            ValueError: If the model carries no sparsity record.
        """
        from .sharing.hub import push_to_hub

        return push_to_hub(model, repo_id, tokenizer=tokenizer, report=report, **options)

    def _find_weights(self, model: "PreTrainedModel") -> Weights:
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise TypeError(f"model is a {type(model).__name__}: pass a loaded transformers model.")
        if hasattr(model, "peft_config"):
            raise ValueError(
                "The model carries an adapter, and its matrices must not be pruned: merge it (merge_and_unload, or "
                "merge_preserving_masks if the model is pruned already), or unload it first."
            )
        check_not_compiled(model)
        check_dense(model)
        check_sharing(model, self.config.works_blockwise)
        weights = find_weights(find_blocks(model, self.config.blocks), self.config.include, self.config.exclude)
        check_resident(flat(weights))
        check_pattern(weights, self.config)
        return weights

    def _read(self, model: "PreTrainedModel", dataset: Any, tokenizer: Any) -> CalibrationChunks:
        chunks = build_chunks(dataset, self.config, model, tokenizer)
        self.coverage = chunks.coverage
        check_same(model, self.config, chunks, current())
        return chunks

    def _calibrate(
        self,
        model: "PreTrainedModel",
        weights: Sequence[PrunableWeight],
        chunks: CalibrationChunks,
        also_for: Iterable[MWandaConfig] = (),
    ) -> CalibrationStatistics:
        activities = {config.activity for config in (self.config, *also_for) if config.activity is not None}
        with inference_mode(model):
            return calibrate(model, weights, chunks, self.config, sorted(activities), self.progress)

    def _reached(self, weights: Weights, statistics: CalibrationStatistics | None) -> Weights:
        """The weights to prune: all, unless the policy leaves out experts that calibration barely reached."""
        return weights if statistics is None else leave_out_experts(weights, statistics, self.config)

    def _block_by_block(self, model: "PreTrainedModel", weights: Weights, chunks: CalibrationChunks) -> BlockByBlock:
        found = weigh_languages(self.config, chunks.tokens).tolist()
        language_weights = dict(zip(chunks.tokens, found, strict=True))
        store = partial(make_store, self.activations)
        own, reduce = deal(chunks, current())
        return BlockByBlock(model, weights, own, language_weights, self.config, store, reduce)

    def _plan(self, walk: Walk, statistics: CalibrationStatistics | None) -> SparsityPlan:
        """Visits every block to find its importance, then shares the target out."""
        importance: dict[str, float | None] = dict.fromkeys(walk.weights)
        for step in walk.steps():
            entries, _ = settle(step.weights, *step.look(), self.config)
            seen = None if statistics is None else dataclasses.replace(statistics, weights=entries)
            for block in dict.fromkeys(weight.block for weight in step.weights):
                with gathered(weight.module for weight in walk.weights[block]):
                    importance[block] = block_importance(walk.weights[block], seen, self.config)
        sizes = {block: sum(weight.numel for weight in found) for block, found in walk.weights.items()}
        return share_out(sizes, list(importance.values()), self.config)

    def _run(
        self,
        model: "PreTrainedModel",
        walk: Walk,
        plan: SparsityPlan,
        statistics: CalibrationStatistics | None,
        fingerprint: str,
    ) -> "PreTrainedModel":
        """Prunes on a walk; if it ends early, the editor undoes the changes and there is no record."""
        weighted = None if statistics is None else weigh_languages(self.config, statistics.tokens)
        with inference_mode(model), WeightEditor(self.restore_on_failure) as editor:
            decisions = Decisions(plan, weighted, self.config, current())
            visited, total = self._visit(walk.steps(editor), decisions), len(flat(walk.weights))
            is_shown = self.progress and current().is_first
            for _ in progress_bar(visited, total=total, description="Pruning", show=is_shown):
                pass
            decisions.check()
            record = build_record(model, self.config, walk.weights, walk.zeros, plan, statistics, fingerprint)
            check_interrupts()
            forget_dequantization(model)
            attach_record(model, record)
        half_a_weight = 0.5 / min(weight.matrix.shape[1] for weight in flat(walk.weights))
        if record.achieved_sparsity > record.target_sparsity + max(_MORE_ZEROS, half_a_weight):
            logger.warning(
                "%.1f %% of the weights are zero though %.1f %% were asked for: they were zero before, and pruning "
                "makes no weight dense again. For a lower sparsity prune the dense model.",
                100 * record.achieved_sparsity,
                100 * record.target_sparsity,
            )
        return model

    def _visit(self, steps: Iterable[Step], decisions: Decisions) -> Iterator[PrunableWeight]:
        """Looks at every step, decides how its weights change, and yields each weight."""
        for step in steps:
            entries, grams = settle(step.weights, *step.look(), self.config)
            for weight, change in decisions.of(step.weights, entries, grams):
                step.write(weight, *change)
                check_interrupts()
                yield weight
