"""What the settings of a pruning ask for: statistics, Gram matrices, the text itself."""

from collections.abc import Mapping

from .registry import ALLOCATIONS, CRITERIA
from .values import activity_key


class Needs:
    """Base of the settings; everything here follows from them."""

    criterion: str
    allocation: str | None
    activation: str
    activation_threshold: float
    activation_exponent: float
    refinement: str
    reconstruction: str | None
    calibration: str | None
    tune_regularisation: bool
    language_weights: str | Mapping[str, float]

    @property
    def needs_grams(self) -> bool:
        """Whether masks or values depend on the Gram matrices of the layers' inputs."""
        return self.refinement != "none" or self.updates_matrices

    @property
    def updates_matrices(self) -> bool:
        """Whether each matrix gets new values by itself."""
        return CRITERIA[self.criterion].updates or self.reconstruction in ("obs", "obs+block")

    @property
    def trains_blocks(self) -> bool:
        """Whether blocks are trained after they are pruned."""
        return self.reconstruction in ("block", "obs+block")

    @property
    def needs_statistics(self) -> bool:
        """Whether masks or values depend on calibration data at all."""
        by_itself = CRITERIA[self.criterion].needs_data or ALLOCATIONS[str(self.allocation)].needs_data
        return by_itself or self.needs_grams or self.trains_blocks

    @property
    def finds_regularisation(self) -> bool:
        """Whether shrinkage and ridge are found by leaving languages out."""
        return self.needs_grams and self.tune_regularisation

    @property
    def finds_settings(self) -> bool:
        """Whether some settings are found by trying before the model is pruned."""
        return self.finds_regularisation or self.finds_weights

    @property
    def finds_weights(self) -> bool:
        """Whether the weights of languages are found by pruning several times."""
        return self.needs_statistics and self.language_weights == "minimax"

    @property
    def needs_text(self) -> bool:
        """Whether pruning reads the calibration text itself, so that statistics are not enough."""
        return self.works_blockwise or self.finds_weights

    @property
    def works_blockwise(self) -> bool:
        """Whether calibration data are read block by block during pruning, instead of all at once before it."""
        return self.needs_statistics and (self.calibration == "sequential" or self.needs_grams)

    @property
    def activity(self) -> str | None:
        """Key of the activity count that the statistics must hold for these settings; None if none is needed."""
        if not CRITERIA[self.criterion].uses_activity or self.activation == "none" or self.activation_exponent == 0:
            return None
        return activity_key(self.activation, self.activation_threshold)
