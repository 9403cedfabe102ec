"""What settings imply for the work, without being settings."""

from collections.abc import Mapping

from .config_file import SavedSettings
from .legal import read_pattern
from .registry import ALLOCATIONS, CRITERIA
from .values import activity_key


class Implied(SavedSettings):
    """Answers what the rooms of the package ask of settings, whose names and meanings are those of `MWandaConfig`."""

    sparsity: float | None
    pattern: str
    criterion: str
    activation: str
    activation_threshold: float
    activation_exponent: float
    group: str
    allocation: str | None
    sensitivity: str
    refinement: str
    reconstruction: str | None
    calibration: str | None
    tune_regularisation: bool
    language_weights: str | Mapping[str, float]

    @property
    def target_sparsity(self) -> float:
        """The sparsity as a plain number."""
        return float(self.sparsity)  # type: ignore[arg-type]

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """`(N, M)` of an N:M pattern: N weights are kept of every M. None if unstructured."""
        return read_pattern(self.pattern)

    @property
    def needs_grams(self) -> bool:
        """Whether masks or values depend on the Gram matrices of the layers' inputs."""
        return self.swaps or self.updates_matrices

    @property
    def updates_matrices(self) -> bool:
        """Whether each matrix gets new values by itself."""
        return CRITERIA[self.criterion].updates or self.reconstruction in ("obs", "obs+block")

    @property
    def swaps(self) -> bool:
        """Whether weights of a row are swapped."""
        return self.refinement in ("swap", "swap+block")

    @property
    def trains_masks(self) -> bool:
        """Whether blocks are trained as to which weights stay."""
        return self.refinement in ("block", "swap+block")

    @property
    def trains_values(self) -> bool:
        """Whether the weights that stay in a block are trained."""
        return self.reconstruction in ("block", "obs+block")

    @property
    def trains_blocks(self) -> bool:
        """Whether blocks are trained after they are pruned."""
        return self.trains_masks or self.trains_values

    @property
    def weighs_rows(self) -> bool:
        """Whether the rows of a matrix compete with each other, each weighed by its sensitivity."""
        return self.sensitivity != "none" and self.group == "matrix" and self.kept_of is None

    @property
    def couples_rows(self) -> bool:
        """Whether swaps look at the errors that rows of a matrix make together."""
        return self.sensitivity != "none" and self.swaps

    @property
    def weighs_outputs(self) -> bool:
        """Whether errors that training of blocks lowers are weighed by how much the loss depends on them."""
        return self.sensitivity != "none" and self.trains_blocks

    @property
    def needs_statistics(self) -> bool:
        """Whether masks or values depend on calibration data at all."""
        by_itself = CRITERIA[self.criterion].needs_data or ALLOCATIONS[str(self.allocation)].needs_data
        return by_itself or self.needs_grams or self.trains_blocks or self.sensitivity != "none"

    @property
    def finds_regularisation(self) -> bool:
        """Whether shrinkage and ridge are found by leaving languages out."""
        return self.needs_grams and self.tune_regularisation

    @property
    def finds_weights(self) -> bool:
        """Whether the weights of languages are found by pruning several times."""
        return self.needs_statistics and self.language_weights == "minimax"

    @property
    def finds_settings(self) -> bool:
        """Whether some settings are found by trying before the model is pruned."""
        return self.finds_regularisation or self.finds_weights

    @property
    def needs_text(self) -> bool:
        """Whether pruning reads the calibration text itself, so that statistics are not enough."""
        return self.works_blockwise or self.finds_weights

    @property
    def works_blockwise(self) -> bool:
        """Whether calibration data are read block by block during pruning, instead of all at once before it."""
        return self.needs_statistics and (self.calibration == "sequential" or self.needs_grams)

    @property
    def needs_row_statistics(self) -> bool:
        """Whether statistics must hold sensitivities of rows, because masks are made of statistics alone."""
        return self.weighs_rows and not self.works_blockwise

    @property
    def activity(self) -> str | None:
        """Key of the activity count that the statistics must hold for these settings; None if none is needed."""
        if not CRITERIA[self.criterion].uses_activity or self.activation == "none" or self.activation_exponent == 0:
            return None
        return activity_key(self.activation, self.activation_threshold)
