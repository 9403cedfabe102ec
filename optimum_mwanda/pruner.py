"""`MWandaPruner`: calibrate, allocate, apply."""

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .calibration.reduction import check_same
from .calibration.statistics import CalibrationStatistics
from .choosing.before_pruning import choose
from .configuration import MWandaConfig
from .data.chunks import CalibrationText
from .data.language_coverage import LanguageCoverage
from .execution import Run, execute
from .modeling.block_source import BlockSource
from .modeling.blocks import inference_mode
from .modeling.fingerprint import model_fingerprint
from .modeling.weights import Weights
from .processes.group import current, sharing
from .pruning.checks import (
    check_differentiable,
    check_held_whole,
    check_plan,
    check_settling,
    check_statistics,
    open_model,
)
from .pruning.experts_policy import leave_out_experts
from .pruning.planning import to_calibrate
from .pruning.sparsity_plan import SparsityPlan
from .storage.journal import Journal
from .walking.block_by_block import walk_blocks
from .walking.calibrating import Calibrated, calibrate
from .walking.deciding import make_plan
from .walking.differentiating import differentiate
from .walking.finished import PrunedBlocks, begin
from .walking.store import HiddenStates, check_activations, make_store
from .walking.together import shared_by_holders
from .walking.walk import Known, Walk

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .evaluation.report import PerplexityComparison


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
        journal: Where finished blocks of an offloaded model are kept, so that a run that was stopped can go on. The
            blocks must be on disk. `prune_checkpoint` does all that belongs to it.

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
        journal: Journal | None = None,
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
        self.journal = journal
        self.coverage: tuple[LanguageCoverage, ...] = ()
        self._chosen: Mapping[str, str] = {}

    @sharing()
    def prune(
        self,
        model: "PreTrainedModel",
        dataset: Any = None,
        tokenizer: "PreTrainedTokenizerBase | str | None" = None,
        plan: SparsityPlan | None = None,
    ) -> "PreTrainedModel":
        """Calibrates on a multilingual dataset and prunes the model in place.

        Args:
            model: A causal language model.
            dataset: `datasets.Dataset` or `IterableDataset` with a language column and either texts or `input_ids`, a
                dict of language to texts, or a list of rows. Not needed for magnitude pruning with uniform allocation.
            tokenizer: Tokenizer for texts, or its name or path. None: the one saved beside the model.
            plan: Result of `allocate` or `search_plan`; None to allocate as the settings say.

        Returns:
            The same model, pruned.

        Raises:
            TypeError: If the dataset or its columns have a type that cannot be read.
            ValueError: If the settings, the data and the model do not fit together.
            FloatingPointError: If weights or activations are NaN or infinite.
        """
        if not self.config.needs_statistics:
            return self.apply(model, plan=plan)
        if dataset is None:
            raise ValueError(
                f"criterion={self.config.criterion!r} with allocation={self.config.allocation!r} needs calibration "
                "data: pass a dataset."
            )
        weights, source = open_model(model, self.config, plan)
        check_differentiable(model, weights, self.config)
        if self.config.finds_settings:
            check_held_whole(model, source, "Settings are found")
        check_settling(model, source, self.config)
        text = self._open(model, dataset, tokenizer)
        pruner = copy.copy(self)
        try:
            chosen = choose(model, weights, text, self.config, source, plan, self._store, self.progress)
            pruner.config, pruner._chosen = chosen
            pruner._prune(model, weights, text, source, plan)
        finally:
            self.coverage = pruner.coverage or text.coverage
        return model

    def _prune(
        self,
        model: "PreTrainedModel",
        weights: Weights,
        text: CalibrationText,
        source: BlockSource,
        plan: SparsityPlan | None,
    ) -> "PreTrainedModel":
        """`prune` with settings that leave nothing open."""
        pruned = PrunedBlocks(self.journal, source)
        data = {} if self.journal is None else text.whole().fingerprints
        begin(self.journal, model, self.config, data, plan and plan.to_dict())
        seen = to_calibrate(weights, self.config, is_planned=plan is not None)
        for_all = plan is None and seen is weights
        statistics, known, chunks = self._calibrate(model, seen, text, source, (), self.journal, for_all)
        found = differentiate(model, weights, chunks, self.config, self.progress)
        statistics = dataclasses.replace(statistics, row_sensitivities=found.rows)
        weights = self._reached(weights, statistics)
        plan = plan or self._plan(model, weights, statistics, source, known)
        walk: Walk = Known(weights, statistics, source, pruned)
        if self.config.works_blockwise:
            walk = walk_blocks(model, weights, chunks, self.config, source, self._store, pruned, found.outputs)
        run = Run(statistics, statistics.model_fingerprint, found.factors, self._chosen)
        return execute(model, walk, plan, run, self.config, self.progress, self.restore_on_failure)

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
            also_for: Other settings to use the statistics with, in case they need kinds of activity or sensitivities
                that these do not.

        Returns:
            Statistics per matrix and language.

        Raises:
            TypeError: As for `prune`.
            ValueError: As for `prune`.
            FloatingPointError: If activations are NaN or infinite.
        """
        configs = (self.config, *also_for)
        asking = next((config for config in configs if config.needs_row_statistics), None)
        weights, source = open_model(model, self.config)
        if asking is not None:
            check_differentiable(model, weights, asking)
        check_settling(model, source, self.config)
        text = self._open(model, dataset, tokenizer)
        statistics, _, chunks = self._calibrate(model, weights, text, source, configs)
        rows = {} if asking is None else differentiate(model, weights, chunks, asking, self.progress).rows
        return dataclasses.replace(statistics, row_sensitivities=rows)

    @shared_by_holders
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
        weights, source = open_model(model, self.config)
        statistics = check_statistics(statistics, model_fingerprint(model), weights, self.config)
        return self._plan(model, self._reached(weights, statistics), statistics, source)

    @shared_by_holders
    def apply(
        self,
        model: "PreTrainedModel",
        statistics: CalibrationStatistics | None = None,
        plan: SparsityPlan | None = None,
    ) -> "PreTrainedModel":
        """Prunes the model in place with statistics of the dense model.

        Nothing is written before every mask is known, unless the model is offloaded: that is pruned block by block.

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
        weights, source = open_model(model, self.config)
        pruned = PrunedBlocks(self.journal, source)
        fingerprint = model_fingerprint(model)
        statistics = check_statistics(statistics, fingerprint, weights, self.config)
        if plan is not None:
            check_plan(plan, weights, self.config)
        weights = self._reached(weights, statistics)
        plan = plan or self._plan(model, weights, statistics, source)
        data = {} if statistics is None else statistics.fingerprints
        begin(self.journal, model, self.config, data, plan.to_dict())
        walk, run = Known(weights, statistics, source, pruned), Run(statistics, fingerprint, {}, {})
        return execute(model, walk, plan, run, self.config, self.progress, self.restore_on_failure)

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

    def _open(self, model: "PreTrainedModel", dataset: Any, tokenizer: Any) -> CalibrationText:
        self.coverage = ()
        text = CalibrationText(dataset, self.config, model, tokenizer)
        check_same(model, self.config, text, current())
        return text

    def _calibrate(
        self,
        model: "PreTrainedModel",
        weights: Weights,
        text: CalibrationText,
        source: BlockSource,
        also_for: Iterable[MWandaConfig] = (),
        journal: Journal | None = None,
        for_all: bool = False,
    ) -> Calibrated:
        activities = {config.activity for config in (*also_for, self.config) if config.activity is not None}
        options = (sorted(activities), self.progress, self._store, journal, for_all)
        try:
            with inference_mode(model):
                found = calibrate(model, weights, text, self.config, source, *options)
            self.coverage = found.chunks.coverage
        finally:
            self.coverage = self.coverage or text.coverage
        return found

    def _plan(
        self,
        model: "PreTrainedModel",
        weights: Weights,
        statistics: CalibrationStatistics | None,
        source: BlockSource,
        known: Mapping[str, float | None] | None = None,
    ) -> SparsityPlan:
        with inference_mode(model):
            return make_plan(Known(weights, statistics, source), statistics, self.config, known)

    def _reached(self, weights: Weights, statistics: CalibrationStatistics | None) -> Weights:
        """The weights to prune: all, unless the policy leaves out experts that calibration barely reached."""
        return weights if statistics is None else leave_out_experts(weights, statistics, self.config)

    def _store(self) -> HiddenStates:
        return make_store(self.activations)
