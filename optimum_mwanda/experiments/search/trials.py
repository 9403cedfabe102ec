"""Pruning one model repeatedly with one calibration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...configuration import MWandaConfig
from ...data.chunks import build_chunks
from ...pruner import MWandaPruner
from ...walking.failure import bare_failures

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Pruning:
    """Prunes a dense model with settings that differ in sparsity, allocation strength and language weights.

    One calibration, made here, serves them all, unless the settings look at each block during pruning.

    Args:
        model: The model.
        dataset: Calibration data.
        tokenizer: Its tokenizer.
        config: The settings.
        progress: Whether to show progress bars.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        dataset: Any,
        tokenizer: "PreTrainedTokenizerBase | str | None",
        config: MWandaConfig,
        progress: bool,
    ) -> None:
        self._model, self._dataset, self._tokenizer = model, dataset, tokenizer
        self._config, self._progress = config, progress
        self._statistics = (
            MWandaPruner(config, progress=progress).calibrate(model, dataset, tokenizer)
            if config.needs_statistics and not config.needs_text
            else None
        )

    @property
    def tokens(self) -> Mapping[str, int]:
        """Language to calibration tokens."""
        if self._statistics is not None:
            return self._statistics.tokens
        return build_chunks(self._dataset, self._config, self._model, self._tokenizer).tokens

    @property
    def fingerprints(self) -> Mapping[str, Any]:
        """Language to what identifies its calibration text; empty if the settings need none."""
        if self._statistics is not None:
            return self._statistics.fingerprints
        if not self._config.needs_statistics:
            return {}
        return build_chunks(self._dataset, self._config, self._model, self._tokenizer).fingerprints

    def __call__(self, config: MWandaConfig) -> None:
        """Prunes the model, which must be dense."""
        pruner = MWandaPruner(config, progress=self._progress, restore_on_failure=False)  # the dense state is kept
        with bare_failures():
            if self._statistics is None:
                pruner.prune(self._model, self._dataset, self._tokenizer)
            else:
                pruner.apply(self._model, self._statistics)
