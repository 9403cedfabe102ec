"""Models that several processes share out."""

from typing import Any

import pytest

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.modeling.sharding import divides_text

from ..conftest import assert_untouched, make_model, make_rows, state_of


def test_parts_that_do_not_say_that_they_are_parts_are_refused() -> None:
    model: Any = make_model()
    before = state_of(model)
    assert divides_text(model)
    model._tp_size = 2  # some versions of transformers keep the parts of a process as plain tensors
    assert not divides_text(model)
    with pytest.raises(ValueError, match="does not say which part of a matrix a process holds: update transformers"):
        MWandaPruner(MWandaConfig(sequence_length=24), progress=False).prune(model, make_rows())
    assert_untouched(model, before)
