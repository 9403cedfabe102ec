"""How a pruned model is trained to win back what pruning took."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from ..configuration import MWandaConfig
from ..legal import Number, OneOf, Text, setting
from ..values import describe_fields

STRATEGIES = ("equal", "temperature", "need")
"""How languages may be mixed, beside weights of one's own."""

LEARNING_RATES = {"masks": 1e-4, "distill": 1e-4, "lora": 1e-3, "rigl": 1e-4, "lisa": 1e-4}

RECIPE_OF = {
    "distillation_weight": "distill",
    "lora_rank": "lora",
    "rigl_alpha": "rigl",
    "rigl_interval": "rigl",
    "lisa_blocks": "lisa",
    "lisa_interval": "lisa",
    "gradual_interval": "gradual",
    "gradual_stop": "gradual",
}
"""Settings that mean something to one recipe only; those of gradual pruning are not settings of `recover`."""


@dataclasses.dataclass(frozen=True)
class Recipe(OneOf):
    """The name of a recipe."""

    def check(self, name: str, value: Any) -> None:
        """Refuses anything else, and says where gradual pruning is."""
        if value == "gradual":
            raise ValueError(
                f"{name}='gradual' prunes while it trains, but this takes a model that is pruned already: give "
                "GradualPruningCallback to a Trainer, or use run_clm_mwanda.py --recipe gradual in "
                "integrations/transformers_training."
            )
        super().check(name, value)


def check_recipe(recipe: str, given: Iterable[str]) -> None:
    """Checks that no setting belongs to another recipe.

    Args:
        recipe: The recipe.
        given: Names of settings that were given.

    Raises:
        ValueError: If one of them has no meaning for this recipe.
    """
    for name in given:
        if RECIPE_OF.get(name, recipe) != recipe:
            raise ValueError(
                f"{name} belongs to recipe={RECIPE_OF[name]!r}, but recipe={recipe!r} was chosen: leave {name} out, or "
                "choose the other recipe."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """Settings of a recovery; `recover` takes them as keywords."""

    recipe: str = setting(
        "masks",
        "'masks' trains all weights that are not pruned, 'distill' does so toward the dense model's predictions, "
        "'lora' trains masked adapters and merges them, 'rigl' lets the masks move, and 'lisa' trains a few blocks at "
        "a time.",
        Recipe(tuple(LEARNING_RATES)),
    )
    tokens: int = setting(1_000_000, "Tokens to train on.", Number(at_least=1, whole=True))
    mix: str = setting(
        "equal",
        "Shares of the languages: 'equal', 'temperature' (by their size) or 'need' (by what pruning cost them).",
        OneOf(STRATEGIES),
    )
    mix_temperature: float = setting(
        MWandaConfig.language_temperature, "Makes shares by size or need more equal the higher it is.", Number(above=0)
    )
    learning_rate: float | None = setting(
        None,
        "Highest learning rate; it rises for 5 % of the steps and falls as a cosine. None: 1e-4, for lora 1e-3.",
        Number(above=0),
    )
    batch_size: int = setting(8, "Chunks per optimizer step and process.", Number(at_least=1, whole=True))
    distillation_weight: float = setting(
        0.5, "Weight of the dense model's predictions against the text itself.", Number(at_least=0, at_most=1)
    )
    lora_rank: int = setting(16, "Rank of the adapters.", Number(at_least=1, whole=True))
    rigl_alpha: float | None = setting(
        None,
        "Share of the kept weights that 'rigl' exchanges at first. None: 0.3, but no weights larger than what new ones "
        "can reach until the next exchange.",
        Number(above=0, at_most=1),
    )
    rigl_interval: int | None = setting(
        None,
        "Steps between two exchanges of 'rigl'. None: 100, or a tenth of the training if that is less.",
        Number(at_least=1, whole=True),
    )
    lisa_blocks: int = setting(2, "Blocks that 'lisa' trains at a time.", Number(at_least=1, whole=True))
    lisa_interval: int = setting(20, "Steps for which 'lisa' trains the same blocks.", Number(at_least=1, whole=True))
    bf16: bool = setting(False, "Whether to compute in bfloat16 where it is safe.")
    languages: Sequence[str] | None = setting(None, "Languages to train on. None: all.")
    language_column: str = setting(MWandaConfig.language_column, "Column that names the language.", Text())
    text_column: str = setting(MWandaConfig.text_column, "Column with the text.", Text())
    sequence_length: int | None = setting(
        None,
        "Tokens per chunk. None: 512, or fewer if the model has fewer positions.",
        Number(at_least=1, whole=True),
    )
    bos: str = setting(MWandaConfig.bos, "As in MWandaConfig.", OneOf(("auto", "none")))
    seed: int = setting(0, "Seed for the order of the text and for new adapters.", Number(at_least=0, whole=True))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, legal = getattr(self, field.name), field.metadata["legal"]
            if legal is not None and not (value is None and field.default is None):
                legal.check(field.name, value)
        if self.mix == "equal" and self.recipe != "distill" and self.mix_temperature != type(self).mix_temperature:
            raise ValueError(
                f"mix_temperature={self.mix_temperature} has no effect with mix='equal': leave it out, or give "
                "mix='temperature' or mix='need'."
            )
        if not isinstance(self.bf16, bool):
            raise ValueError(f"bf16={self.bf16!r} is not allowed: give True or False.")
        fields = dataclasses.fields(self)
        check_recipe(self.recipe, (field.name for field in fields if getattr(self, field.name) != field.default))


RecoverySettings.__doc__ = f"""{RecoverySettings.__doc__}

    Args:
{describe_fields(RecoverySettings)}
"""
