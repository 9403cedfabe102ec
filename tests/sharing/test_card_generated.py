"""The generated cards in `model_cards` have what the template gives."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from optimum_mwanda.sharing.model_card import create_card

from ..hub_server import metadata_errors
from .test_card import REPORT, make_record, without_fences

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[2] / "model_cards").glob("*/README.md"))
PICTURES = {"plot": "sparsity.png", "degradation_plot": "degradation.png"}


def outline(card: ModelCard) -> list[str]:
    """Headings below the title, and pictures, in their order."""
    return re.findall(r"^##+ .*$|^!\[.*\]\(.*\)$", without_fences(card.text), re.MULTILINE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_generated_card_has_the_sections_and_pictures_of_the_template(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert outline(card) == outline(create_card(make_record(), report=REPORT, **PICTURES))
    assert {path.name for path in folder.iterdir()} == {"README.md", *PICTURES.values()}
    assert metadata_errors(str(card)) == []
