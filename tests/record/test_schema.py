import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from optimum_mwanda import MWandaConfig, SparsityRecord, sparsity_record
from optimum_mwanda.record.parts import (
    RecordedBlock,
    RecordedExperts,
    RecordedLanguage,
    RecordedMatrix,
    RecordedReconstruction,
)

from .examples import make_mixture_record, make_record


def test_every_field_is_an_attribute() -> None:
    values = make_mixture_record()
    record = SparsityRecord.parse(values)
    same = ("schema", "library_version", "settings", "pattern", "target_sparsity", "achieved_sparsity", "model")
    for name in (*same, "model_fingerprint", "seed", "versions"):
        assert getattr(record, name) == values[name]
    assert record.dataset_fingerprints == ("0" * 64,)
    assert record.languages == {"en": RecordedLanguage(32, 0.5), "sw": RecordedLanguage(32, 0.5)}
    assert record.blocks == (RecordedBlock("layers.0", 0.5), RecordedBlock("layers.1", 0.5))
    assert record.matrices == (
        RecordedMatrix("layers.0.mlp.experts.up_proj", "layers.0", (4, 2, 8), 32),
        RecordedMatrix("layers.0.mlp.gate", "layers.0", (2, 2), 2),
        RecordedMatrix("layers.0.mlp.up_proj", "layers.0", (4, 8), 16),
        RecordedMatrix("layers.1.mlp.experts.up_proj", "layers.1", (4, 2, 8), 32),
        RecordedMatrix("layers.1.mlp.up_proj", "layers.1", (4, 8), 16),
    )
    assert [matrix.path for matrix in record.matrices[:2]] == ["mlp.experts.up_proj", "mlp.gate"]
    assert record.experts == RecordedExperts("shared", 32, 8, 1, ("layers.0.mlp.experts.3",), 0, {"sw": 2})
    (earlier,) = record.history
    assert (earlier.schema, earlier.settings, earlier.languages) == (1, values["settings"], record.languages)


def test_what_training_the_blocks_has_brought_is_read() -> None:
    values = make_record()
    assert SparsityRecord.parse(values).block_errors is None
    values["blocks"]["reconstruction"] = {"epoch": [3, 0], "before": [0.5, 0.25], "after": [0.25, 0.25]}
    record = SparsityRecord.parse(values)
    assert record.blocks[0].reconstruction == RecordedReconstruction(3, 0.5, 0.25)
    assert record.blocks[1].reconstruction == RecordedReconstruction(0, 0.25, 0.25)
    assert record.block_errors == (0.375, 0.25)
    assert "error of the outputs of a block from 37.5 % to 25.0 %, in the mean" in str(record)


@pytest.mark.parametrize(
    "columns",
    [
        [],
        {"epoch": [1, 2], "before": [0.5, 0.5]},
        {"epoch": [1], "before": [0.5, 0.5], "after": [0.5, 0.5]},
        {"epoch": [1, 1.5], "before": [0.5, 0.5], "after": [0.5, 0.5]},
        {"epoch": [1, 1], "before": [0.5, -0.5], "after": [0.5, 0.5]},
        {"epoch": [1, 1], "before": [0.5, 0.5], "after": [0.5, float("inf")]},
        {"epoch": [1, 1], "before": [0.5, 0.5], "after": [0.5, None]},
    ],
)
def test_a_wrong_account_of_training_the_blocks_is_refused(columns: Any) -> None:
    values = make_record()
    values["blocks"]["reconstruction"] = columns
    with pytest.raises(ValueError, match=r"blocks\.reconstruction|is not finite"):
        SparsityRecord.parse(values)


def test_what_was_found_by_trying_is_read_and_goes_into_the_history() -> None:
    assert SparsityRecord.parse(make_record()).chosen == {}
    values = make_record() | {"chosen": {"regularisation": "damping=0.1 of 4 candidates"}}
    record = SparsityRecord.parse(values)
    assert record.chosen == values["chosen"]
    assert "Found by trying: damping=0.1 of 4 candidates." in str(record)
    assert record.next_history()[-1]["chosen"] == values["chosen"]


@pytest.mark.parametrize(
    "chosen", [[], "all", {"regularisation": 1}, {"regularisation": "a\nb"}, {"a\n": "b"}], ids=str
)
def test_a_wrong_account_of_what_was_found_by_trying_is_refused(chosen: Any) -> None:
    with pytest.raises(ValueError, match="chosen is"):
        SparsityRecord.parse(make_record() | {"chosen": chosen})


def test_a_block_that_is_a_matrix_has_an_empty_path() -> None:
    values = make_record()
    values["matrices"] = {"": {"shape": [4, 8], "zeros": [16, 16]}}
    assert [(m.name, m.path) for m in SparsityRecord.parse(values).matrices] == [("layers.0", ""), ("layers.1", "")]


def test_a_record_cannot_be_changed_by_what_it_was_made_of_or_gives() -> None:
    values = make_record()
    record = SparsityRecord.parse(values)
    values["blocks"]["names"].append("x")
    record.to_dict()["history"].append("x")
    assert record.to_dict() == make_record()
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seed = 1  # type: ignore[misc]


def test_the_order_of_keys_is_kept() -> None:
    for values in (make_mixture_record(), dict(reversed(make_mixture_record().items()))):
        assert json.dumps(SparsityRecord.parse(values).to_dict()) == json.dumps(values)


def test_a_printed_record_says_what_was_done() -> None:
    settings = {"criterion": "mwanda", "group": "row", "allocation": "owl", "calibration": "sequential"}
    values = make_record() | {"settings": settings}
    assert str(SparsityRecord.parse(values)).splitlines() == [
        "50.00% of the weights in 2 blocks are zero, and 50.00% were asked for (mwanda, unstructured per row, owl "
        "allocation, sequential calibration).",
        "org/dense was pruned by optimum-mwanda 0.1.0 (torch 2.13.0, transformers 5.23.0).",
        "Calibrated on en (32 tokens, weight 0.500), sw (32 tokens, weight 0.500).",
        "Earlier prunings of the model: 1.",
    ]
    values |= {"languages": {}, "model": "", "history": [], "settings": {}}
    assert str(SparsityRecord.parse(values)).splitlines() == [
        "50.00% of the weights in 2 blocks are zero, and 50.00% were asked for (unknown, unstructured per unknown, "
        "unknown allocation).",
        "The model was pruned by optimum-mwanda 0.1.0 (torch 2.13.0, transformers 5.23.0).",
        "No calibration text was used.",
    ]


def test_a_printed_record_cannot_steer_the_terminal() -> None:
    evil = "x\x1b[2J\u202e\r\n| seed | 9 |\x07"
    values = make_record() | {
        "settings": {"criterion": evil, "allocation": [evil]},
        "model": evil,
        "library_version": evil,
        "versions": {"torch": evil, "transformers": evil, evil: {evil: evil}},
        "languages": {evil: {"tokens": 1, "weight": 1.0}},
    }
    lines = str(SparsityRecord.parse(values)).split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)


def test_the_history_of_the_next_record_ends_with_this_one() -> None:
    values = make_mixture_record()
    earlier, last = SparsityRecord.parse(values).next_history()
    assert earlier == values["history"][0]
    assert last == {key: value for key, value in values.items() if key in earlier}
    full = make_record(history=8) | {"seed": 7}
    assert [entry["seed"] for entry in SparsityRecord.parse(full).next_history()] == [0] * 7 + [7]


@pytest.mark.parametrize(("languages", "indent"), [(30, None), (20, 2)])
def test_the_record_of_the_largest_models_stays_small(languages: int, indent: int | None) -> None:
    record = make_record(blocks=126, history=8)
    zeros = int(0.532143 * 53248 * 16384)
    paths = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    record["blocks"] = {"names": [f"model.layers.{index}" for index in range(126)], "sparsity": [0.532143] * 126}
    record["matrices"] = {path: {"shape": [53248, 16384], "zeros": [zeros] * 126} for path in paths}
    record["achieved_sparsity"] = 0.532143
    tokens = {f"lang_{index:02}": {"tokens": 1_048_576, "weight": 0.033333333} for index in range(languages)}
    for entry in (record, *record["history"]):
        entry["settings"] = MWandaConfig(languages=list(tokens)).to_dict()
        entry["languages"] = tokens
    SparsityRecord.parse(record)
    assert len(json.dumps({"mwanda_config": record}, indent=indent)) < 70_000


def test_records_of_the_first_schema_are_read() -> None:
    record = make_record()
    assert record["schema"] == record["history"][0]["schema"] == 1
    assert SparsityRecord.parse(record).to_dict() == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["matrices"]["mlp.experts.up_proj"].update(zeros=[32, 65]), "fits the shape"),
        (lambda r: r["matrices"]["mlp.experts.up_proj"].update(shape=[4, 2, 8, 1]), "shape"),
        (lambda r: r["matrices"]["mlp.experts.up_proj"].update(shape=[4, 0, 8]), "shape"),
        (lambda r: r.update(experts=[]), "experts"),
        (lambda r: r["experts"].pop("policy"), "experts.policy"),
        (lambda r: r["experts"].update(policy="\x1b"), "experts.policy"),
        (lambda r: r["experts"].update(wanted=-1), "experts.wanted"),
        (lambda r: r["experts"].update(lacking=9), "experts.lacking"),
        (lambda r: r["experts"].update(lacking=2), "experts.names"),
        (lambda r: r["experts"].update(names=["\n"]), "experts.names"),
        (lambda r: r["experts"].update(lacking=8, count=8, names=["x"] * 33), "experts.names"),
        (lambda r: r["experts"].update(fewest=1.5), "experts.fewest"),
        (lambda r: r["experts"].update(unreached={"xx": 1}), "experts.unreached"),
        (lambda r: r["experts"].update(unreached={"sw": 9}), "experts.unreached"),
        (lambda r: r["experts"].update(unreached={"sw": "2"}), "experts.unreached"),
    ],
)
def test_an_invalid_record_of_a_mixture_is_refused_by_name(change: Any, message: str) -> None:
    record = make_mixture_record()
    change(record)
    with pytest.raises(ValueError, match=message):
        SparsityRecord.parse(record)


def test_unknown_keys_are_tolerated() -> None:
    record = make_record()
    record["later"] = {"anything": [1, None, "x"]}
    record["languages"]["en"]["script"] = "Latn"
    record["settings"]["later"] = True
    assert SparsityRecord.parse(record).to_dict() == record


@pytest.mark.parametrize("where", ["record", "history"])
def test_a_newer_schema_says_to_upgrade(where: str) -> None:
    record = {"schema": 3} if where == "record" else make_record()
    if where == "history":
        record["history"][0]["schema"] = 3
    with pytest.raises(ValueError, match=r"schema 3.*upgrade optimum-mwanda"):
        SparsityRecord.parse(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("settings"), "settings"),
        (lambda r: r.update(schema=True), "schema"),
        (lambda r: r.update(seed=-1), "seed"),
        (lambda r: r.update(seed=2**70), "2\\*\\*64"),
        (lambda r: r.update(pattern="2:4:8"), "pattern"),
        (lambda r: r.update(target_sparsity=float("nan")), "finite"),
        (lambda r: r.update(achieved_sparsity=0.9), "achieved_sparsity"),
        (lambda r: r.update(model="x" * 5000), "5,000 characters"),
        (lambda r: r.update(model="\ud800"), "surrogate"),
        (lambda r: r.update(model_fingerprint="a" * 63), "model_fingerprint"),
        (lambda r: r.update(dataset_fingerprints=["x"]), "dataset_fingerprints"),
        (lambda r: r.update(languages={str(i): {"tokens": 1, "weight": 0} for i in range(10_001)}), "10,001 entries"),
        (lambda r: r["languages"].update(en={"tokens": 1.5, "weight": 1}), "languages"),
        (lambda r: r["languages"].update(en={"tokens": 1, "weight": 2}), "languages"),
        (lambda r: r.update(versions={"torch": "2"}), "versions"),
        (lambda r: r.update(history=r["history"] * 9), "history"),
        (lambda r: r["history"][0].pop("seed"), r"history\[0\].seed"),
        (lambda r: r["blocks"].update(names=["layers.0", "layers.0"]), "blocks.names"),
        (lambda r: r["blocks"].update(names=["layers.0", "\x1b[2J"]), "blocks.names"),
        (lambda r: r["blocks"].update(names=[]), "blocks.names"),
        (lambda r: r["blocks"].update(sparsity=[0.5, 0.6]), "blocks.sparsity"),
        (lambda r: r["matrices"]["mlp.up_proj"].update(zeros=[16]), "zeros"),
        (lambda r: r["matrices"]["mlp.up_proj"].update(zeros=[16, 33]), "fits the shape"),
        (lambda r: r["matrices"]["mlp.up_proj"].update(zeros=[16, -1]), "fits the shape"),
        (lambda r: r["matrices"]["mlp.up_proj"].update(shape=[0, 8]), "shape"),
        (lambda r: r["matrices"]["mlp.up_proj"].update(shape=[2**40, 8]), "shape"),
        (lambda r: r.update(matrices={}), "every block has one"),
        (lambda r: r.update(later=make_record), "plain JSON"),
        (lambda r: r.update(later={1: 2}), "not strings"),
    ],
)  # fmt: skip
def test_an_invalid_record_is_refused_by_name(change: Any, message: str) -> None:
    record = make_record()
    change(record)
    with pytest.raises(ValueError, match=message):
        SparsityRecord.parse(record)


def test_two_ways_to_the_same_full_path_are_refused() -> None:
    record = make_record()
    record["blocks"]["names"] = ["a", "a.b"]
    record["matrices"] = {"b.c": {"shape": [2, 2], "zeros": [2, 2]}, "c": {"shape": [2, 2], "zeros": [None, 2]}}
    with pytest.raises(ValueError, match="different full paths"):
        SparsityRecord.parse(record)


def test_deep_nesting_is_refused_without_exhausting_the_stack() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="deep"):
        SparsityRecord.parse({**make_record(), "later": nested})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FUZZ = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}


def assert_valid_or_refused(record: Any) -> bool:
    """The one promise of the reader; whether the record was accepted."""
    try:
        checked = SparsityRecord.parse(record)
    except ValueError:
        return False
    assert checked.to_dict() == record
    assert SparsityRecord.parse(checked.to_dict()) == checked
    assert str(checked)
    for matrix in checked.matrices:
        assert 0 <= matrix.zeros <= matrix.numel
    json.dumps(checked.to_dict(), allow_nan=False).encode()
    return True


@settings(max_examples=1000, **FUZZ)
@given(JSON)
@example({"schema": 1})
def test_arbitrary_json_is_refused_with_a_value_error(value: Any) -> None:
    assert not assert_valid_or_refused(value)


@st.composite
def mutated_records(draw: st.DrawFn) -> Any:
    """A valid record with one to three parts replaced, removed, doubled or moved."""
    record: Any = draw(st.sampled_from([make_record, make_mixture_record]))()
    for _ in range(draw(st.integers(1, 3))):
        parent, key = None, None
        node = record
        while isinstance(node, (dict, list)) and node and (parent is None or draw(st.integers(0, 3))):
            parent = node
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            node = node[key]
        assume(parent is not None)
        action = draw(st.sampled_from(["replace", "number", "remove", "repeat", "move"]))
        if action == "replace":
            parent[key] = draw(JSON)
        elif action == "number":
            parent[key] = draw(st.sampled_from([0, -1, 1, 2, 16, 2**31, 2**53, 2**64, 10**400, 0.5, -0.0, 1e308, "1"]))
        elif action == "remove":
            del parent[key]
        elif action == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(node))
        else:
            record[draw(st.sampled_from(sorted(record) or ["x"]))] = copy.deepcopy(node)
    return record


@settings(max_examples=3000, **FUZZ)
@given(mutated_records())
def test_a_mutated_record_is_valid_or_refused_with_a_value_error(record: Any) -> None:
    assert_valid_or_refused(record)


@settings(max_examples=500, **FUZZ)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps({"mwanda_config": value}).encode()))
def test_any_config_file_gives_a_record_none_or_a_value_error(tmp_path_factory: Any, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(content)
    try:
        record = sparsity_record(folder)
    except ValueError:
        return
    assert record is None or SparsityRecord.parse(record.to_dict()) == record
