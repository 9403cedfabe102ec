import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import PreTrainedModel

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from optimum_mwanda.calibration import statistics as module
from optimum_mwanda.calibration.statistics import FORMAT, WeightStatistics
from optimum_mwanda.data.language_coverage import LanguageCoverage
from tests.conftest import make_model, make_rows

LENGTH = 8
MODEL = make_model()
POOL = make_rows("en sw zh-Hant", rows=3, length=LENGTH)


def calibrate(rows: Sequence[Any], model: PreTrainedModel = MODEL, **kwargs: Any) -> CalibrationStatistics:
    """One chunk per row and one chunk per batch, so that the same text is summed up in the same parts."""
    config = MWandaConfig(
        **{"sequence_length": LENGTH, "samples_per_language": 99, "batch_size": 1, "activation": "positive"} | kwargs
    )
    return MWandaPruner(config, progress=False).calibrate(model, list(rows))


def of(languages: str, seed: int = 0, rows: int = 3) -> CalibrationStatistics:
    return calibrate(make_rows(languages, rows=rows, length=LENGTH, seed=seed))


def tensors(statistics: CalibrationStatistics) -> dict[str, torch.Tensor]:
    return {
        f"{name} {kind}": tensor
        for name, entry in statistics.weights.items()
        for kind, tensor in {"tokens": entry.tokens, "squares": entry.square_sum, **entry.active}.items()
    } | {f"{name} rows": tensor for name, tensor in statistics.row_sensitivities.items()}


def assert_same(a: CalibrationStatistics, b: CalibrationStatistics, rtol: float = 0.0) -> None:
    assert a.coverage == b.coverage
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert tensor.dtype == right[key].dtype
        torch.testing.assert_close(tensor, right[key], rtol=rtol, atol=0, msg=lambda text, key=key: f"{key}: {text}")


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from("ab-"), min_size=len(POOL), max_size=len(POOL)).filter(lambda d: {*"ab"} <= {*d}))
def test_merging_two_calibrations_equals_one_pass_over_both_texts(deal: list[str]) -> None:
    first, second, both = (
        calibrate([row for row, part in zip(POOL, deal, strict=True) if part in parts]) for parts in ("a", "b", "ab")
    )
    assert_same(first.merge(second), both, rtol=1e-12)
    assert_same(second.merge(first), both, rtol=1e-12)


def test_sensitivities_are_merged_selected_saved_and_loaded_too(tmp_path: Path) -> None:
    settings = {"sensitivity": "fisher", "group": "matrix"}
    first, second, both = (calibrate(part, **settings) for part in (POOL[:3], POOL[3:], POOL))
    assert len(first.row_sensitivities) == 21
    merged = first.merge(second)
    assert_same(merged, both, rtol=1e-12)
    assert_same(merged.select(["sw"]), both.select(["sw"]), rtol=1e-12)
    merged.save(tmp_path / "stats.safetensors")
    assert_same(CalibrationStatistics.load(tmp_path / "stats.safetensors"), merged)
    with pytest.raises(ValueError, match="Only one of the statistics holds sensitivities"):
        first.merge(calibrate(POOL[3:]))
    name = next(iter(merged.row_sensitivities))
    for wrong in (merged.row_sensitivities[name][:1], -merged.row_sensitivities[name]):
        broken = dataclasses.replace(merged, row_sensitivities={name: wrong})
        broken.save(tmp_path / "broken.safetensors")
        with pytest.raises(ValueError, match=f"sensitivities of '{name}'"):
            CalibrationStatistics.load(tmp_path / "broken.safetensors")


def test_merging_disjoint_languages_keeps_the_sums_of_each() -> None:
    french, others = of("fr"), of("en zh-Hant")
    merged = french.merge(others)
    assert merged.languages == ("en", "fr", "zh-Hant")
    assert_same(merged.select(["fr"]), french)
    assert_same(merged.select(["en", "zh-Hant"]), others)


def test_merged_calibration_remembers_all_its_chunks() -> None:
    first, second, third = (of("en sw", seed) for seed in range(3))
    merged = first.merge(second).merge(third)
    assert merged.coverage == tuple(
        LanguageCoverage(code, rows=9, tokens=9 * LENGTH, chunks=9) for code in ("en", "sw")
    )
    for part in (first, second, third):
        with pytest.raises(ValueError, match="same calibration chunks"):
            merged.merge(part)


def test_text_of_one_language_cannot_be_counted_twice() -> None:
    groups = {code: make_rows(code, rows=3, length=LENGTH) for code in ("en", "sw", "fr")}
    first = calibrate([*groups["en"], *groups["sw"]])
    second = calibrate([*groups["en"], *({**row, "language": "fr"} for row in groups["fr"])])
    with pytest.raises(ValueError, match="same calibration chunks"):
        first.merge(second)


def test_selected_languages_of_one_calibration_can_be_merged_again() -> None:
    statistics = of("en fr sw")
    assert_same(statistics.select(["sw", "en"]).merge(statistics.select(["fr"])), statistics)


def test_other_activities_cannot_be_merged() -> None:
    other = calibrate(make_rows("fr", length=LENGTH), activation="above_rms")
    with pytest.raises(ValueError, match=r"different activities.*positive.*above_rms>0\.1"):
        of("en").merge(other)
    with pytest.raises(ValueError, match=r"different activities.*none"):
        of("en").merge(calibrate(make_rows("fr", length=LENGTH), activation="none"))


@pytest.mark.parametrize(
    "other",
    [
        lambda: calibrate(make_rows("fr", length=LENGTH), make_model("gpt2")),
        lambda: calibrate(make_rows("fr", length=LENGTH), exclude=["*.q_proj"]),
    ],
)
def test_other_matrices_cannot_be_merged(other: Callable[[], CalibrationStatistics]) -> None:
    with pytest.raises(ValueError, match="different models"):
        of("en").merge(other())


def test_merging_changes_neither_part() -> None:
    first, second = of("en sw"), of("en fr", seed=1)
    before = copy.deepcopy((first, second))
    first.merge(second)
    assert_same(first, before[0])
    assert_same(second, before[1])


def test_selection_holds_the_chosen_languages_alone() -> None:
    statistics = of("en fr sw")
    chosen = statistics.select(["sw", "en"])
    assert chosen.languages == ("en", "sw")
    assert chosen.tokens == {"en": 3 * LENGTH, "sw": 3 * LENGTH}
    for key, tensor in tensors(chosen).items():
        assert torch.equal(tensor, tensors(statistics)[key][[0, 2]])
    assert_same(statistics.select(statistics.languages), statistics)


def test_selecting_an_unknown_language_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Language 'de' was asked for, but the statistics hold: en, fr"):
        of("en fr").select(["en", "de"])


def test_summary_shows_the_coverage() -> None:
    assert str(of("en zh-Hant")).splitlines() == [
        "| language | rows | tokens | chunks | empty rows |",
        "| -------- | ---: | -----: | -----: | ---------: |",
        "| en       |    3 |     24 |      3 |          0 |",
        "| zh-Hant  |    3 |     24 |      3 |          0 |",
        "21 matrices",
    ]


@pytest.mark.parametrize("as_text", [True, False])
def test_saved_statistics_are_read_back_bit_for_bit(tmp_path: Path, as_text: bool) -> None:
    statistics = dataclasses.replace(
        calibrate(make_rows("eng_Latn zh-Hant język", length=LENGTH), activation="above_rms"), model="org/model"
    ).merge(calibrate(make_rows("sw", length=LENGTH), activation="above_rms"))
    path: Any = tmp_path / "new" / "statistics.safetensors"
    path = str(path) if as_text else path
    statistics.save(path)
    loaded = CalibrationStatistics.load(path)
    assert_same(loaded, statistics)
    assert (loaded.model, loaded.fingerprints) == ("org/model", statistics.fingerprints)
    assert loaded.activities == ("above_rms>0.1",)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["statistics.safetensors"]


@pytest.mark.parametrize("make", [lambda: of("en fr sw").select(["fr"]), lambda: of("en").merge(of("fr"))])
def test_selected_and_merged_statistics_can_be_saved(tmp_path: Path, make: Callable[[], CalibrationStatistics]) -> None:
    statistics = make()
    statistics.save(tmp_path / "s")
    assert_same(CalibrationStatistics.load(tmp_path / "s"), statistics)


def test_loading_a_file_that_is_not_there_names_it(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path.name}'"):
            CalibrationStatistics.load(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -8])
def test_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    of("en").save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.safetensors' holds no calibration statistics"):
        CalibrationStatistics.load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "another safetensors file"),
        ({"format": "pt"}, "another safetensors file"),
        ({FORMAT: "no JSON"}, ""),
        ({FORMAT: "[]"}, ""),
        ({FORMAT: "{}"}, "version"),
        ({FORMAT: json.dumps({"version": 99})}, "format version is 99, this library reads 1"),
        ({FORMAT: json.dumps({"version": 1, "coverage": [{"code": "en"}], "fingerprints": [], "model": ""})}, ""),
    ],
)
def test_safetensors_of_another_kind_are_refused(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    save_file({"a:tokens": torch.ones(1)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"other\.safetensors' holds no calibration statistics.*{message}"):
        CalibrationStatistics.load(tmp_path / "other.safetensors")


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the cat sat on the mat")
    with pytest.raises(ValueError, match=r"notes\.txt' holds no calibration statistics"):
        CalibrationStatistics.load(tmp_path / "notes.txt")


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_failed_save_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    old = of("en")
    old.save(tmp_path / "s")

    def fail(_: Any, path: Path, *__: Any) -> None:
        Path(path).write_bytes(b"half of the")
        raise error

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(type(error)):
        of("en", seed=1).save(tmp_path / "s")
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
    assert_same(CalibrationStatistics.load(tmp_path / "s"), old)


def test_mean_square_divides_by_the_tokens_of_each_language() -> None:
    entry = WeightStatistics(torch.tensor([2, 4]), torch.tensor([[2.0, 8.0], [2.0, 8.0]], dtype=torch.float64), {})
    assert entry.mean_square.tolist() == [[1.0, 4.0], [0.5, 2.0]]


def test_order_of_the_languages_does_not_change_the_statistics() -> None:
    groups = [make_rows(code, rows=4, length=LENGTH, seed=k) for k, code in enumerate(("sw", "en", "fr"))]
    forwards = calibrate([row for group in groups for row in group], batch_size=3)
    backwards = calibrate([row for group in reversed(groups) for row in group], batch_size=3)
    assert_same(forwards, backwards)
    assert forwards.fingerprints == backwards.fingerprints


def pruned(rows: list[Any], **settings: Any) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(MODEL)
    config = MWandaConfig(sequence_length=LENGTH, batch_size=1, samples_per_language=99, **settings)
    return MWandaPruner(config, progress=False).prune(model, rows).state_dict()


@pytest.mark.parametrize(("allocation", "activation"), [("owl", "none"), ("cwl", "positive")])
@pytest.mark.parametrize(("weighting", "independent"), [("equal", True), ("proportional", False)])
def test_only_equal_weighting_is_independent_of_how_much_text_a_language_has(
    allocation: str, activation: str, weighting: str, independent: bool
) -> None:
    once = make_rows("en fr sw", length=LENGTH)
    options = {"allocation": allocation, "activation": activation, "language_weights": weighting}
    base, more = pruned(once, **options), pruned([*once, *once[-4:] * 2], **options)
    assert all(torch.equal(base[name], more[name]) for name in base) is independent


def test_merged_unknown_tokens_add_up_unless_some_are_not_known() -> None:
    def counted(unknown: int | None, seed: int) -> CalibrationStatistics:
        found = of("en", seed)
        return dataclasses.replace(
            found, coverage=tuple(dataclasses.replace(each, unknown=unknown) for each in found.coverage)
        )

    assert {each.unknown for each in counted(2, 0).merge(counted(3, 1)).coverage} == {5}
    assert {each.unknown for each in counted(2, 0).merge(counted(None, 1)).coverage} == {None}


DAMAGE: dict[str, Callable[[WeightStatistics], dict[str, Any]]] = {
    "NaN": lambda e: {"square_sum": e.square_sum * float("nan")},
    "infinite": lambda e: {"square_sum": e.square_sum + float("inf")},
    "negative": lambda e: {"square_sum": -e.square_sum},
    "one row": lambda e: {"square_sum": e.square_sum[:1]},
    "one count": lambda e: {"tokens": e.tokens[:1]},
    "negative count": lambda e: {"tokens": -e.tokens},
    "counts as numbers with a point": lambda e: {"tokens": e.tokens.double()},
    "no tokens": lambda e: {"tokens": e.tokens * 0},
    "more active than there": lambda e: {"active": {key: a + 1e6 for key, a in e.active.items()}},
    "narrow activity": lambda e: {"active": {key: a[:, :1] for key, a in e.active.items()}},
    "a number": lambda e: {"square_sum": torch.tensor(1.0)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_sums_that_no_calibration_gives_are_refused(damage: str, tmp_path: Path) -> None:
    found = of("en sw")
    name, entry = next(iter(found.weights.items()))
    changed = dataclasses.replace(entry, **DAMAGE[damage](entry))
    dataclasses.replace(found, weights=found.weights | {name: changed}).save(tmp_path / "s")
    with pytest.raises(ValueError, match=rf"s' holds no calibration statistics that can be read: .*'{name}'"):
        CalibrationStatistics.load(tmp_path / "s")


@pytest.mark.parametrize("change", [{"rows": "<b>"}, {"language": 3}, {"tokens": None}])
def test_coverage_of_another_type_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    found = of("en")
    dataclasses.replace(found, coverage=(dataclasses.replace(found.coverage[0], **change),)).save(tmp_path / "s")
    with pytest.raises(ValueError, match="holds no calibration statistics"):
        CalibrationStatistics.load(tmp_path / "s")


def test_weights_of_a_model_are_not_taken_for_statistics(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another safetensors file, perhaps the weights of a model"):
        CalibrationStatistics.load(tmp_path / "model.safetensors")
