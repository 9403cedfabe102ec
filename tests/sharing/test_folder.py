"""The folder of a pruned model holds all that is given, and nothing else."""

import dataclasses
from pathlib import Path

import pytest

from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.pruner import MWandaPruner
from optimum_mwanda.sharing.folder import save_folder
from optimum_mwanda.sharing.model_card import describe
from optimum_mwanda.storage.files import is_compressed

from ..conftest import make_model
from .test_card_harness import COMPARISON

CONFIG = MWandaConfig(criterion="magnitude", allocation="uniform", sparsity=0.6)


@pytest.mark.parametrize("compressed", [False, True])
def test_weights_and_settings_are_there_and_the_rest_where_it_is_given(tmp_path: Path, compressed: bool) -> None:
    model = MWandaPruner(CONFIG, progress=False).prune(make_model())
    save_folder(model, tmp_path / "bare", compressed=compressed)
    card = dataclasses.replace(describe(model, harness=COMPARISON), compressed=compressed)
    save_folder(model, tmp_path / "full", harness=COMPARISON, card=card, compressed=compressed)
    bare, full = ({path.name for path in (tmp_path / name).iterdir()} for name in ("bare", "full"))
    assert MWandaConfig.from_pretrained(tmp_path / "bare") == CONFIG
    assert is_compressed(tmp_path / "bare") is compressed
    assert not bare & {"README.md", "evaluation.json", "harness.json"}
    assert {"README.md", "harness.json"} <= full - bare
    assert "evaluation.json" not in full
