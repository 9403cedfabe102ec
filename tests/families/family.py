"""One model family in the family matrix, and how to make a tiny random model of it."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from tests.conftest import make_rows

Kind = Literal["decoder", "encoder-decoder", "encoder", "vision-language"]

CLASSES: Mapping[Kind, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "encoder": AutoModelForMaskedLM,
    "vision-language": AutoModelForImageTextToText,
}

SIZES = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTH = 24  # tokens of a row; more than any sliding window


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of one kind and the matrices in them that are pruned.

    Attributes:
        paths: Module paths of the blocks, with `{a,b}` and `{0-3}` for alternatives.
        pruned: Paths of the matrices inside a block, separated by spaces, written the same way.
        kind: How these blocks differ from the others in the model; empty if all are alike.
    """

    paths: str
    pruned: str
    kind: str = ""

    @property
    def expanded(self) -> list[str]:
        """Path of every matrix inside a block."""
        return [path for pattern in self.pruned.split() for path in expand(pattern)]


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the matrix.

    Attributes:
        name: Name in the matrix: the model type and, if a type has several rows, what is special about this one.
        blocks: Written by hand from the modelling code: every block of the tiny model and what is pruned in it.
        config: Settings of the tiny model besides `SIZES`.
        kind: Kind of model.
        known_as: Well-known models of this family, if the model type does not name them.
        note: What a user should know: which features the row tests, what stays dense, and why.
        since: Oldest transformers for which the row holds; older versions lack the family or have another layout.
    """

    name: str
    blocks: tuple[Blocks, ...]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: Kind = "decoder"
    known_as: str = ""
    note: str = ""
    since: str = "5.0"

    @property
    def is_current(self) -> bool:
        """Whether the installed transformers is new enough."""
        return Version(transformers.__version__) >= Version(self.since)

    @property
    def model_type(self) -> str:
        """The `model_type` of its config."""
        return self.name.split(" ")[0]

    @property
    def pruned(self) -> set[str]:
        """Names of all matrices that are pruned."""
        return {f"{block}.{path}" for kind in self.blocks for block in expand(kind.paths) for path in kind.expanded}

    def make(self, seed: int = 0) -> PreTrainedModel:
        """A tiny random model in evaluation mode."""
        torch.manual_seed(seed)
        # A vision-language model has its sizes in the text config.
        config = self.config if self.kind == "vision-language" else {**SIZES, **self.config}
        return CLASSES[self.kind].from_config(AutoConfig.for_model(self.model_type, **config)).eval()

    def rows(self) -> list[dict[str, Any]]:
        """Tokenised rows of two languages; for an encoder-decoder they have a target."""
        rows = make_rows("en sw", rows=3, length=LENGTH)
        if self.kind == "encoder-decoder":
            targets = make_rows("en sw", rows=3, length=LENGTH, seed=1)
            rows = [{**row, "labels": target["input_ids"]} for row, target in zip(rows, targets, strict=True)]
        return rows

    def batches(self) -> list[dict[str, Tensor]]:
        """The rows as batches that the model takes."""
        names = ("input_ids", "labels") if self.kind == "encoder-decoder" else ("input_ids",)
        rows = self.rows()
        return [
            {name: torch.tensor([row[name] for row in pair]) for name in names}
            for pair in zip(rows[::2], rows[1::2], strict=True)
        ]


def expand(pattern: str) -> Iterator[str]:
    """Everything that a pattern stands for: `a.{b,c}` is `a.b` and `a.c`, `{0-2}` is `0`, `1` and `2`.

    `{,x}y` is `y` and `xy`; braces do not nest.
    """
    parts = re.split(r"\{([^}]*)\}", pattern)
    parts[1::2] = [_alternatives(choice) for choice in parts[1::2]]
    parts[::2] = [[literal] for literal in parts[::2]]
    return map("".join, itertools.product(*parts))


def _alternatives(choice: str) -> list[str]:
    bounds = re.fullmatch(r"(\d+)-(\d+)", choice)
    if bounds is None:
        return choice.split(",")
    return [str(number) for number in range(int(bounds[1]), int(bounds[2]) + 1)]
