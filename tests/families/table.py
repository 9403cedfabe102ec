"""Writes the page that lists the model families: `python -m tests.families.table > docs/models.md`."""

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

from .family import Blocks, Family, Kind, expand
from .matrix import FAMILIES, REASONS

TITLES: dict[Kind, str] = {
    "decoder": "Decoders",
    "encoder-decoder": "Encoder-decoders",
    "encoder": "Encoders",
    "vision-language": "Vision-language models",
}

HEAD = """\
# Model families

Each family below is tested with a tiny random model that has the family's own features: run one by one, its blocks give
the model's output, bit for bit; exactly the matrices named here are pruned; the sparsity is as requested, in dense and
in sequential calibration; the pruned model saves, loads and generates.

Other families in transformers work if their layers follow its conventions; custom code works if you name the list of
blocks with `blocks`. The matrices inside the blocks are pruned. Embeddings, heads, norms, convolutions and routers of
experts stay dense. In the third column, `*` stands for the number of an expert; the fourth column names every other
parameter of a block with two or more dimensions.

Written by `python -m tests.families.table > docs/models.md`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        rows = [_row(family) for family in FAMILIES.values() if family.kind == kind]
        parts.append(f"## {title}\n\n{_table(['model type', 'class', 'pruned in a block', 'dense', 'notes'], rows)}")
    reasons = [[f"`{name}`", reason.text] for name, reason in REASONS.items()]
    parts.append(f"## Not supported\n\n{_table(['model type', 'reason'], reasons)}")
    return "\n".join(parts)


def _row(family: Family) -> list[str]:
    model = family.make()
    name = f"`{family.model_type}`" + family.name[len(family.model_type) :]
    name = f"{name}<br>{family.known_as}" if family.known_as else name
    pruned = "<br>".join(_describe(kind) for kind in family.blocks)
    return [name, f"`{type(model).__name__}`", pruned, _code(_dense(family, model)), family.note]


def _describe(kind: Blocks) -> str:
    """Paths as written in the matrix, with `*` for any expert."""
    paths = _code(re.sub(r"\{\d+-\d+\}", "*", kind.pruned).split())
    return f"{kind.kind}: {paths}" if kind.kind else paths


def _dense(family: Family, model: nn.Module) -> list[str]:
    """Paths, inside the blocks, of parameters with several dimensions that are not pruned, except biases."""
    blocks = {path: kind for kind in family.blocks for path in expand(kind.paths)}
    found: dict[str, None] = {}
    for path, kind in blocks.items():
        # The path of an expert's matrix has a number before the last name; the parameter holds all experts.
        pruned = {re.sub(r"\.\d+\.(\w+)$", r".\1", name) for name in kind.expanded} | set(kind.expanded)
        block = model.get_submodule(path)
        for name, parameter in block.named_parameters():
            owner = block.get_submodule(name.rpartition(".")[0])
            shown = name.removesuffix(".weight")
            is_matrix = parameter.dim() > 1 and not name.endswith("bias")
            if is_matrix and name not in pruned and not (isinstance(owner, (nn.Linear, Conv1D)) and shown in pruned):
                found[shown] = None
    return list(found)


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are long: they are not padded to columns."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


if __name__ == "__main__":
    print(page(), end="")
