"""What a model is evaluated on, and how much of it at a time."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..configuration import MWandaConfig
from ..legal import OneOf, setting
from ..values import describe_fields

CONFIDENCE = 0.95
"""Default probability that an interval covers the true value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of an evaluation; `evaluate_languages`, `compare` and `find_sparsity` take them as keywords."""

    languages: Sequence[str] | None = setting(None, "Languages to evaluate. None: all.")
    language_column: str = setting(MWandaConfig.language_column, "Column that names the language.")
    text_column: str = setting(MWandaConfig.text_column, "Column with the text; for an encoder-decoder, the source.")
    target_column: str = setting(MWandaConfig.target_column, "Column with the target, for an encoder-decoder.")
    sequence_length: int | None = setting(
        None,
        "Tokens per window; for an encoder-decoder, most tokens per source and per target. None: 512, or fewer if the "
        "model has fewer positions.",
    )
    tokens_per_language: int = setting(
        16384, "Most tokens to evaluate per language, not counting sources; the last text is cut to fit."
    )
    bos: str = setting(
        MWandaConfig.bos,
        "'auto' begins every window with the tokens that the tokenizer writes before a text; 'none' leaves them where "
        "rows begin.",
        OneOf(("auto", "none")),
    )
    batch_size: int = setting(8, "Windows per forward pass.")
    seed: int = setting(0, "Seed for choosing rows if there are more than needed.")

    def __post_init__(self) -> None:
        if isinstance(self.languages, str):
            object.__setattr__(self, "languages", (self.languages,))
        for field in dataclasses.fields(self):
            if (legal := field.metadata["legal"]) is not None:
                legal.check(field.name, getattr(self, field.name))

    @classmethod
    def like(cls, config: MWandaConfig, **changes: Any) -> "EvaluationSettings":
        """Settings that read a dataset as a config reads calibration data.

        Args:
            config: Gives columns, `sequence_length`, `bos`, `batch_size` and `seed`.
            **changes: Settings that replace these, and any others.
        """
        shared = ("language_column", "text_column", "target_column", "sequence_length", "bos", "batch_size", "seed")
        return cls(**{**{name: getattr(config, name) for name in shared}, **changes})


EvaluationSettings.__doc__ = f"""{EvaluationSettings.__doc__}

    Args:
{describe_fields(EvaluationSettings)}
"""
