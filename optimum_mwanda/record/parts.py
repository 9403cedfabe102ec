"""The parts of the sparsity record. `docs/record.md` names every field."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class RecordedReconstruction:
    """What training a block after it was pruned has brought.

    Attributes:
        epoch: The epoch whose weights were kept, counted from 1; 0 if none was better than the weights before training.
        before: Error of the block's outputs on held-back calibration text before training, as a share of what the dense
            block adds to its input.
        after: The same with the weights that were kept.
    """

    epoch: int
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class RecordedBlock:
    """What the record says about one block.

    Attributes:
        name: Module path.
        sparsity: Share of zeros in its matrices after pruning.
        reconstruction: What training it has brought; None if it was not trained.
    """

    name: str
    sparsity: float
    reconstruction: RecordedReconstruction | None = None


@dataclasses.dataclass(frozen=True)
class RecordedMatrix:
    """What the record says about one matrix, or about the matrices of all experts in one parameter.

    Attributes:
        name: Module path, or path of the parameter that holds all experts.
        block: Module path of its block.
        shape: `(out, in)`, or `(experts, out, in)`.
        zeros: Zeros counted after pruning.
    """

    name: str
    block: str
    shape: tuple[int, ...]
    zeros: int

    @property
    def path(self) -> str:
        """Path inside the block; empty if the block is the matrix."""
        return self.name.removeprefix(self.block).removeprefix(".")

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class RecordedLanguage:
    """What the record says about one calibration language.

    Attributes:
        tokens: Tokens that were read.
        weight: How much the language counted; the weights of all languages sum to 1.
    """

    tokens: int
    weight: float


@dataclasses.dataclass(frozen=True)
class RecordedExperts:
    """How calibration reached the experts of a mixture.

    Attributes:
        policy: `experts_policy` of the settings.
        wanted: An expert with fewer tokens counts as lacking.
        count: Experts of the model, all layers together.
        lacking: Number of lacking experts.
        names: Module paths of the first lacking experts.
        fewest: Fewest tokens of one language in one expert.
        unreached: Language to the number of experts that none of its tokens reached, if there are any.
    """

    policy: str
    wanted: int
    count: int
    lacking: int
    names: tuple[str, ...]
    fewest: int
    unreached: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class RecordedTraining:
    """What the record says about one training after a pruning.

    Attributes:
        recipe: What was done, in a word or two.
        steps: Optimizer steps.
        library_version: `optimum-mwanda` that kept or moved the masks.
    """

    recipe: str
    steps: int
    library_version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedPruning:
    """What a record says about its own pruning and, in its history, about each earlier one.

    Attributes:
        schema: Version of the layout.
        library_version: `optimum-mwanda` that pruned the model.
        settings: Settings of `MWandaConfig` in that version.
        pattern: `"unstructured"` or `"N:M"`.
        target_sparsity: Share of the prunable weights that was asked for.
        achieved_sparsity: Share of zeros in the pruned matrices.
        languages: Calibration language to its tokens and its weight; empty if the masks do not depend on data.
        dataset_fingerprints: SHA-256 of the calibration tokens; empty like `languages`.
        model: Name of the model that was pruned; empty if it had none.
        model_fingerprint: SHA-256 over the model before the pruning.
        seed: Seed for choosing calibration rows.
        versions: `torch` and `transformers` to their versions.
        training: Trainings after this pruning, oldest first.
    """

    schema: int
    library_version: str
    settings: Mapping[str, Any]
    pattern: str
    target_sparsity: float
    achieved_sparsity: float
    languages: Mapping[str, RecordedLanguage]
    dataset_fingerprints: tuple[str, ...]
    model: str
    model_fingerprint: str
    seed: int
    versions: Mapping[str, Any]
    training: tuple[RecordedTraining, ...] = ()
