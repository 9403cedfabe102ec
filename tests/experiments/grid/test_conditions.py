"""Which languages are unseen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.experiments.grid.conditions import make_conditions


@given(st.integers(2, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(2, count))))
def test_rotation_leaves_every_language_out_once(sizes: tuple[int, int]) -> None:
    languages = [f"l{index}" for index in range(sizes[0])]
    folds = make_conditions(languages, 4, rotate=sizes[1])
    assert [fold.fold for fold in folds] == [(index, sizes[1]) for index in range(sizes[1])]
    assert len({fold.name for fold in folds}) == 1
    left_out = [language for fold in folds for language in languages if language not in fold.languages]
    assert sorted(left_out) == sorted(languages)
    sizes_left = [len(languages) - len(fold.languages) for fold in folds]
    assert max(sizes_left) - min(sizes_left) <= 1


def test_text_that_the_model_wrote_is_never_left_out() -> None:
    folds = make_conditions(["en", "fr", "self", "self-id", "sw"], 4, rotate=3)
    own = ("self", "self-id")
    assert [fold.languages for fold in folds] == [("fr", *own, "sw"), ("en", *own, "sw"), ("en", "fr", *own)]
    with pytest.raises(ValueError, match="at most 3, the number of languages"):
        make_conditions(["en", "fr", "self", "sw"], 4, rotate=4)


def test_one_language_gets_as_many_chunks_as_all_have_together() -> None:
    everything, alone = make_conditions(["en", "fr", "sw"], 4, only=["en"])
    assert (everything.languages, everything.samples_per_language) == (("en", "fr", "sw"), 4)
    assert (alone.name, alone.languages, alone.samples_per_language) == ("only en", ("en",), 12)


@pytest.mark.parametrize("options", [{"rotate": 1}, {"rotate": 4}, {"only": ["xx"]}])
def test_what_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make_conditions(["en", "fr", "sw"], 4, **options)  # type: ignore[arg-type]
