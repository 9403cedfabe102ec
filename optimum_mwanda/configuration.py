"""`MWandaConfig`: everything that a user can set, checked once."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from .combinations import check_combinations
from .implied import Implied
from .legal import Number, NumberPerLanguage, OneOf, Text, Weighting, YesOrNo, implied_by_pattern, setting
from .presets import preset_settings
from .registry import ALLOCATIONS, CRITERIA, list_criteria
from .values import FrozenDict, describe_fields, plain, strings

_COUNT = Number(at_least=1, whole=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MWandaConfig(Implied):
    """The settings of one pruning run. Immutable: derive another config with `replace`.

    `docs/method.md` gives the equations, and `docs/benchmarks.md` the measurements behind the defaults.
    """

    sparsity: float | None = setting(
        None,
        "Share of the prunable weights to remove. None: 0.5, or 1 - N/M for an N:M pattern.",
        Number(at_least=0, below=1),
    )
    pattern: str = setting("unstructured", "'unstructured', or 'N:M' to keep N of every M consecutive inputs.")
    criterion: str = setting(
        "mwanda",
        f"How to choose the weights to remove: by a score ({list_criteria(updates=False)}), or by a solver that also "
        f"updates the remaining weights ({list_criteria(updates=True)}).",
        OneOf(CRITERIA, register="register_criterion"),
    )
    base: str = setting("wanda", "Score that 'mwanda' builds on.", OneOf(("wanda", "ria")))
    ria_exponent: float = setting(0.5, "Exponent of the activation norm in RIA.", Number(at_least=0))
    variance: str = setting(
        "none", "Cross-lingual variance term of 'mwanda'.", OneOf(("none", "std", "variance", "relative_variance"))
    )
    variance_weight: float = setting(0.5, "Weight of the variance term.", Number(at_least=0))
    activation: str = setting(
        "none",
        "When a channel counts as active in the activation-probability term.",
        OneOf(("none", "positive", "above_rms")),
    )
    activation_threshold: float = setting(
        0.1, "Share of a token's root mean square that 'above_rms' requires.", Number(at_least=0)
    )
    activation_exponent: float = setting(0.5, "Exponent of the activation probability.", Number(at_least=0))
    group: str = setting(
        "row",
        "Which weights compete with each other: those of a 'row' or of the whole 'matrix'.",
        OneOf(("row", "matrix")),
    )
    allocation: str | None = setting(
        None,
        "Sparsity per block; 'alpha' is AlphaPruning. None: 'outliers', or 'uniform' for an N:M pattern.",
        OneOf(ALLOCATIONS, register="register_allocation"),
    )
    allocation_strength: float = setting(
        0.04,
        "Lambda: block sparsities lie within a range of 2 * lambda; with 'alpha', the smallest and the largest are in "
        "the ratio (1 - lambda) to (1 + lambda).",
        Number(at_least=0),
    )
    cwl_direction: str = setting(
        "shared",
        "Which blocks CWL protects: 'shared' (languages behave alike) or 'specific' (they differ).",
        OneOf(("shared", "specific")),
    )
    owl_multiplier: float = setting(
        5.0, "M: OWL counts the weights with a score above M times the block's mean.", Number(above=0)
    )
    min_block_sparsity: float = setting(0.0, "Lower bound of a block's sparsity.", Number(at_least=0, at_most=1))
    max_block_sparsity: float = setting(0.95, "Upper bound of a block's sparsity.", Number(at_least=0, at_most=1))
    language_column: str = setting("language", "Column of the dataset that names the language of a row.", Text())
    text_column: str = setting(
        "text",
        "Column with the text, the conversation, or the source for an encoder-decoder; not needed if the dataset has "
        "'input_ids'.",
        Text(),
    )
    target_column: str = setting(
        "target", "Column with the target, for an encoder-decoder; not needed if the dataset has 'labels'.", Text()
    )
    languages: tuple[str, ...] | None = setting(None, "Languages to calibrate on. None: all in the dataset.")
    language_weights: str | Mapping[str, float] = setting(
        "equal",
        "'equal', 'proportional' (to calibration tokens), 'temperature', 'minimax' (found by several prunings: more "
        "for languages that lose more), or a dict of language to weight; languages that it does not name weigh 1.",
        Weighting(("equal", "proportional", "temperature", "minimax")),
    )
    language_temperature: float = setting(
        2.0, "With 'temperature', weights are tokens ** (1 / temperature).", Number(above=0)
    )
    minimax_rounds: int = setting(3, "How often 'minimax' changes the weights and prunes anew.", _COUNT)
    minimax_bound: float = setting(
        0.02,
        "Share by which 'minimax' lets the mean loss over languages exceed that with equal weights.",
        Number(at_least=0),
    )
    samples_per_language: int | Mapping[str, int] = setting(
        32,
        "Calibration chunks per language, or a dict of language to chunks; languages that it does not name get 32.",
        NumberPerLanguage(at_least=1, whole=True),
    )
    calibration_tolerance: float | None = setting(
        None,
        "Of a language no more text is read once its first half and all of it so far agree, but for less than this "
        "share of channels, which half of them is the weaker one; looked at after 2, 4, 8, ... chunks. None: all "
        "chunks are read.",
        Number(at_least=0, below=1),
    )
    sequence_length: int | None = setting(
        None, "Tokens per calibration chunk. None: 512, or fewer if the model has fewer positions.", _COUNT
    )
    bos: str = setting(
        "auto",
        "'auto' begins every chunk with the tokens that the tokenizer writes before a text, a beginning-of-sequence "
        "token for example; 'none' leaves them where rows begin.",
        OneOf(("auto", "none")),
    )
    batch_size: int = setting(8, "Calibration chunks per forward pass.", _COUNT)
    refinement: str = setting(
        "none",
        "'swap' exchanges pruned and kept weights of a row as long as this lowers a regularised estimate of the "
        "layer's error (refinement_shrinkage, refinement_ridge); the plain error on the calibration text may rise. "
        "'block' trains which weights stay, to minimise the error of each block, with the settings of reconstruction "
        "and refinement_reach; 'swap+block' does one after the other. No weight changes its value.",
        OneOf(("none", "swap", "block", "swap+block")),
    )
    refinement_reach: float = setting(
        2.5,
        "How far 'block' may move the scores by which weights stay, whose ranks lie between 0 and 1; the larger, the "
        "more weights change sides. Its learning rate begins at twice this over the number of steps.",
        Number(above=0),
    )
    refinement_shrinkage: float = setting(
        0.3,
        "Share by which refinement weakens correlations between channels, to avoid overfitting to the languages.",
        Number(at_least=0, at_most=1),
    )
    refinement_ridge: float = setting(
        2.0, "Energy that refinement gives every channel, as a multiple of the median channel's.", Number(at_least=0)
    )
    sensitivity: str = setting(
        "none",
        "'fisher' takes from one backward pass how much the loss depends on each output of a matrix: with "
        "group='matrix', rows are weighed by it; with refinement='swap', so are errors that rows make together; and "
        "where blocks are trained, errors of their outputs.",
        OneOf(("none", "fisher")),
    )
    sensitivity_exponent: float = setting(
        0.125, "Exponent of a row's sensitivity with group='matrix'; 1 takes it as it is.", Number(at_least=0)
    )
    reconstruction: str | None = setting(
        None,
        "'obs' updates the remaining weights to minimise the error of each matrix, 'block' trains them to minimise the "
        "error of each block, 'obs+block' does one after the other, 'none' leaves them; criteria that update weights "
        "do so before 'block'. None: 'obs' for such criteria, else 'none'.",
        OneOf(("none", "obs", "block", "obs+block")),
    )
    reconstruction_shrinkage: float = setting(
        0.0,
        "Share by which 'obs' and criteria that update weights weaken correlations between channels.",
        Number(at_least=0, at_most=1),
    )
    tune_regularisation: bool = setting(
        False,
        "Whether to choose shrinkage and ridge of refinement, 'obs' and criteria that update weights first, by "
        "leaving languages out in turn.",
        YesOrNo(),
    )
    reconstruction_region: str = setting(
        "block",
        "What 'block' trains together, to give the outputs that it has in the dense model: the whole 'block', or each "
        "'part' of it by itself (attention and MLP).",
        OneOf(("block", "part")),
    )
    reconstruction_blocks: int = setting(
        1,
        "How many blocks that follow each other 'block' trains together, to give the outputs that the last of them has "
        "in the dense model.",
        _COUNT,
    )
    reconstruction_epochs: int = setting(6, "Epochs for which 'block' trains a block.", _COUNT)
    reconstruction_batch_size: int = setting(
        1, "Chunks of one language that 'block' reads in a step; `batch_size` is for all else.", _COUNT
    )
    reconstruction_learning_rate: float = setting(
        1e-4, "Learning rate with which 'block' begins; it falls to zero along a cosine.", Number(above=0)
    )
    reconstruction_held_out: float = setting(
        0.125,
        "Share of each language's calibration chunks on which 'block' does not train, but chooses the best epoch.",
        Number(at_least=0, below=1),
    )
    damping: float | None = setting(
        None,
        "Ridge of the update, as a share of the Gram matrix's diagonal. None: 0.1, or 0.01 for 'sparsegpt'.",
        Number(at_least=0),
    )
    calibration: str | None = setting(
        None,
        "'dense' (the unpruned model) or 'sequential' (each block after its pruned predecessors). None: 'sequential' "
        "with reconstruction or masks that are trained, else 'dense'.",
        OneOf(("dense", "sequential")),
    )
    include: tuple[str, ...] | None = setting(None, "Shell patterns of the weights to prune. None: all prunable ones.")
    exclude: tuple[str, ...] = setting((), "Shell patterns of the weights to leave alone.")
    blocks: tuple[str, ...] | None = setting(
        None, "Module path of the list of blocks, or paths of several in the order in which they run. None: find them."
    )
    experts_policy: str = setting(
        "magnitude",
        "What to do with experts that too few tokens reach: prune them by 'magnitude', or by the pooled statistics of "
        "all experts in the layer ('shared'), 'skip' them, or stop with an 'error'.",
        OneOf(("magnitude", "shared", "skip", "error")),
    )
    min_expert_tokens: int = setting(
        32, "Experts with fewer tokens, all languages together, fall under experts_policy.", _COUNT
    )
    reservoir: int | None = setting(
        None, "Of a stream, draw the rows of a language from its first N rows. None: take the first ones.", _COUNT
    )
    seed: int = setting(0, "Seed for choosing calibration rows.", Number(at_least=0, whole=True))
    # Only for from_pretrained(..., quantization_config=MWandaConfig(...)). They are not settings: init-only fields are
    # not compared, not serialised and not among `dataclasses.fields`.
    dataset: dataclasses.InitVar[Any] = None
    tokenizer: dataclasses.InitVar[Any] = None
    quant_method: ClassVar[str] = "mwanda"
    """Name under which transformers looks up the handler of a `quantization_config`."""

    def __post_init__(self, dataset: Any, tokenizer: Any) -> None:
        object.__setattr__(self, "dataset", dataset)
        object.__setattr__(self, "tokenizer", tokenizer)
        for name in ("languages", "include", "exclude", "blocks"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, strings(name, value))
                if not getattr(self, name) and name != "exclude":
                    raise ValueError(f"{name}={value!r} is not allowed: give a list of strings, or leave it out.")
        if self.exclude is None:
            object.__setattr__(self, "exclude", ())
        for field in dataclasses.fields(self):
            value, legal = getattr(self, field.name), field.metadata["legal"]
            if legal is not None and not (value is None and field.default is None):
                legal.check(field.name, value)
        self._resolve_pattern()
        self._resolve_update()
        check_combinations(self)
        for name in ("language_weights", "samples_per_language"):
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def _resolve_pattern(self) -> None:
        """Fills in the sparsity and the allocation that the pattern implies."""
        for name, value in implied_by_pattern(self.pattern, self.sparsity, self.allocation).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _resolve_update(self) -> None:
        """Fills in what the criterion implies for weight updates and calibration."""
        for name in ("reconstruction", "damping", "calibration"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self._implied()[name])

    def _implied(self) -> dict[str, Any]:
        """What the criterion and the reconstruction imply for settings that are left out."""
        return {
            "reconstruction": "obs" if CRITERIA[self.criterion].updates else "none",
            "damping": CRITERIA[self.criterion].damping,
            "calibration": "sequential" if self.trains_masks or self.reconstruction != "none" else "dense",
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> "MWandaConfig":
        """Itself: it never changes, and transformers would copy it together with a whole dataset."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "MWandaConfig":
        """The settings that the name of a method means, listed in `docs/guide.md#presets`, with some of them changed.

        Raises:
            ValueError: If there is no such preset (the message names all), or as the constructor.
        """
        return cls(**{**preset_settings(name), **changes})

    def replace(self, **changes: Any) -> "MWandaConfig":
        """A copy with some settings changed; settings that were implied by others are implied anew, unless given.

        These are the sparsity and the allocation if the pattern changes, and `reconstruction`, `damping` and
        `calibration` if they have the values that the criterion implies.

        Raises:
            ValueError: As the constructor.
        """
        if changes.get("pattern", self.pattern) != self.pattern:
            changes = {"sparsity": None, "allocation": None, **changes}
        implied = {name: None for name, value in self._implied().items() if getattr(self, name) == value}
        return MWandaConfig.from_dict({**self.to_dict(), **implied, **changes})


MWandaConfig.__doc__ = f"""{MWandaConfig.__doc__}
    Args:
{describe_fields(MWandaConfig)}
        dataset (defaults to `None`): Calibration data for pruning while a model is loaded. Not a setting.
        tokenizer (defaults to `None`): Its tokenizer, or the name or path of one. Not a setting.
"""
