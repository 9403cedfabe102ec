import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from optimum_mwanda import MWandaConfig, MWandaPruner, __version__
from optimum_mwanda import pruner as pruner_module
from optimum_mwanda.calibration.statistics import CalibrationStatistics
from optimum_mwanda.modeling.counting import count_zeros
from optimum_mwanda.modeling.fingerprint import model_fingerprint
from optimum_mwanda.pruning.experts_policy import expert_coverage
from optimum_mwanda.record.build import _experts, _portable_name
from optimum_mwanda.record.schema import RecordedMatrix, check_record, recorded_matrices
from optimum_mwanda.record.verification import sparsity_record
from tests.conftest import assert_untouched, make_model, make_rows, state_of
from tests.storage.families import make_family

BLOCKS = [f"model.layers.{index}" for index in range(3)]


def prune(model: Any, **changes: Any) -> Any:
    config = MWandaConfig(samples_per_language=2, sequence_length=16, **changes)
    return MWandaPruner(config, progress=False).prune(model, make_rows())


def make_record(blocks: int = 2, history: int = 1) -> dict[str, Any]:
    """A small valid record, made by hand from `docs/record.md`."""
    common = {
        "schema": 1,
        "library_version": "0.1.0",
        "settings": {"sparsity": 0.5, "languages": None, "exclude": ["*.x"], "language_weights": {"sw": 2.0}},
        "pattern": "unstructured",
        "target_sparsity": 0.5,
        "achieved_sparsity": 0.5,
        "languages": {"en": {"tokens": 32, "weight": 0.5}, "sw": {"tokens": 32, "weight": 0.5}},
        "dataset_fingerprints": ["0" * 64],
        "model": "org/dense",
        "model_fingerprint": "a" * 64,
        "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    return {
        **common,
        "blocks": {"names": [f"layers.{index}" for index in range(blocks)], "sparsity": [0.5] * blocks},
        "matrices": {
            "mlp.up_proj": {"shape": [4, 8], "zeros": [16] * blocks},
            "mlp.gate": {"shape": [[2, 2], *[None] * (blocks - 1)], "zeros": [2, *[None] * (blocks - 1)]},
        },
        "history": [copy.deepcopy(common) for _ in range(history)],
    }


def test_the_record_holds_every_field_with_its_value() -> None:
    model = make_model()
    fingerprint = model_fingerprint(model)
    config = MWandaConfig(
        sparsity=0.6,
        criterion="wanda",
        samples_per_language=2,
        sequence_length=16,
        seed=5,
        language_weights={"sw": 2.0},
        exclude=("*.down_proj",),
    )
    pruner = MWandaPruner(config, progress=False)
    statistics = pruner.calibrate(model, make_rows())
    pruner.apply(model, statistics)

    record = model.config.mwanda_config
    assert type(record) is dict
    assert record == json.loads(json.dumps(record)) == check_record(record)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    matrices = {name: m.weight for name, m in linear.items() if not name.endswith(("down_proj", "lm_head"))}
    zeros = {name: int((weight == 0).sum()) for name, weight in matrices.items()}
    expected = {
        "schema": 2,
        "library_version": __version__,
        "settings": config.to_dict(),
        "pattern": "unstructured",
        "target_sparsity": 0.6,
        "achieved_sparsity": sum(zeros.values()) / sum(weight.numel() for weight in matrices.values()),
        "languages": {
            "en": {"tokens": 32, "weight": 0.25},
            "fr": {"tokens": 32, "weight": 0.25},
            "sw": {"tokens": 32, "weight": 0.5},
        },
        "dataset_fingerprints": [statistics.fingerprint],
        "model_fingerprint": fingerprint,
        "seed": 5,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "history": [],
    }
    assert {field: record[field] for field in expected} == expected
    assert record["blocks"]["names"] == BLOCKS
    for name, share in zip(BLOCKS, record["blocks"]["sparsity"], strict=True):
        inside = [key for key in zeros if key.startswith(f"{name}.")]
        assert share == round(sum(zeros[key] for key in inside) / sum(matrices[key].numel() for key in inside), 6)
    assert {m.name: (m.zeros, m.shape) for m in recorded_matrices(record)} == {
        name: (zeros[name], tuple(weight.shape)) for name, weight in matrices.items()
    }


@pytest.mark.parametrize("changes", [{"calibration": "sequential"}, {"pattern": "2:4"}, {"allocation": "cwl"}])
def test_every_way_of_pruning_is_recorded(changes: dict[str, Any]) -> None:
    record = prune(make_model(), **changes).config.mwanda_config
    assert record["settings"].items() >= changes.items()
    assert record["achieved_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert record["target_sparsity"] == 0.5
    assert record["pattern"] == changes.get("pattern", "unstructured")
    assert list(record["languages"]) == ["en", "fr", "sw"]


def calibrated_mixture(**changes: Any) -> tuple[Any, MWandaConfig, CalibrationStatistics]:
    """A mixture of two layers with four experts, and its calibration."""
    model = make_family("mixtral")
    config = MWandaConfig(samples_per_language=1, sequence_length=8, **changes)
    return model, config, MWandaPruner(config, progress=False).calibrate(model, make_rows())


def with_tokens(statistics: CalibrationStatistics, tokens: dict[str, list[int]]) -> CalibrationStatistics:
    """The statistics with other tokens per language in some experts."""
    weights = {
        name: dataclasses.replace(
            entry, tokens=torch.tensor(tokens.get(name.rpartition(".")[0], entry.tokens.tolist()))
        )
        for name, entry in statistics.weights.items()
    }
    return dataclasses.replace(statistics, weights=weights)


@pytest.mark.parametrize("policy", ["magnitude", "shared", "skip"])
def test_experts_that_calibration_hardly_reached_are_recorded(policy: str) -> None:
    model, config, statistics = calibrated_mixture(experts_policy=policy, min_expert_tokens=3)
    expert = "model.layers.{}.mlp.experts.{}".format
    everywhere = {expert(layer, number): [5, 6, 7] for layer in (0, 1) for number in range(4)}
    gaps = {expert(0, 2): [0, 2, 0], expert(1, 3): [1, 0, 9]}
    statistics = with_tokens(statistics, everywhere | gaps)
    pruner = MWandaPruner(config, progress=False)
    pruner.apply(model, statistics)
    record = sparsity_record(model)
    assert record is not None
    assert record["experts"] == {
        "policy": policy,
        "wanted": 3,
        "count": 8,
        "lacking": 1,
        "names": [expert(0, 2)],
        "fewest": 0,
        "unreached": {"en": 1, "fr": 1, "sw": 1},
    }
    share = 7 / 8 if policy == "skip" else 1
    zeros = sum(sum(record["matrices"][f"mlp.experts.{name}"]["zeros"]) for name in ("gate_up_proj", "down_proj"))
    assert zeros / (2 * 4 * (96 * 32 + 32 * 48)) == pytest.approx(0.5 * share, abs=0.05)


def test_few_names_of_many_experts_are_recorded() -> None:
    _, config, statistics = calibrated_mixture(min_expert_tokens=1000)
    names = [f"model.layers.0.mlp.experts.{number}" for number in range(50)]
    entry = next(iter(statistics.weights.values()))
    weights = {f"{name}.down_proj": entry for name in names}
    statistics = dataclasses.replace(statistics, weights=weights, experts=tuple(names))
    found = _experts(config, expert_coverage(statistics, config))
    assert (found["count"], found["lacking"], found["names"]) == (50, 50, names[:32])
    check_record(make_record() | {"languages": {}, "experts": found | {"unreached": {}}})


def test_only_calibrated_mixtures_have_experts_in_their_record() -> None:
    assert "experts" not in prune(make_model()).config.mwanda_config
    model, _, statistics = calibrated_mixture()
    config = MWandaConfig(criterion="magnitude", allocation="uniform")
    MWandaPruner(config, progress=False).apply(model, statistics)
    assert "experts" not in model.config.mwanda_config


def test_pruning_without_data_records_no_languages() -> None:
    model = make_model()
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).apply(model)
    assert model.config.mwanda_config["languages"] == {}
    assert model.config.mwanda_config["dataset_fingerprints"] == []


def test_a_changed_plan_moves_the_target() -> None:
    model = make_model()
    pruner = MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False)
    pruner.apply(model, plan=pruner.allocate(model).replace({BLOCKS[0]: 0.8}))
    assert model.config.mwanda_config["target_sparsity"] == 0.6
    assert model.config.mwanda_config["blocks"]["sparsity"] == pytest.approx([0.8, 0.5, 0.5], abs=1e-3)


def test_blocks_may_lack_a_matrix_and_shapes_may_differ() -> None:
    model = make_model()
    layers = model.model.layers
    layers[1].mlp.up_proj = torch.nn.Linear(32, 40, bias=False)
    config = MWandaConfig(criterion="magnitude", allocation="uniform", exclude=("*.0.self_attn.q_proj",))
    MWandaPruner(config, progress=False).apply(model)
    matrices = model.config.mwanda_config["matrices"]
    assert matrices["self_attn.q_proj"] == {"shape": [32, 32], "zeros": [None, 512, 512]}
    assert matrices["mlp.up_proj"] == {"shape": [[48, 32], [40, 32], [48, 32]], "zeros": [768, 640, 768]}


def test_pruning_again_updates_the_record_and_keeps_the_history() -> None:
    model = make_model()
    for step in range(10):
        config = MWandaConfig(criterion="magnitude", allocation="uniform", sparsity=0.05 * (step + 1))
        MWandaPruner(config, progress=False).apply(model)
        if step == 0:
            first = dict(model.config.mwanda_config)
        if step == 1:
            (entry,) = model.config.mwanda_config["history"]
            assert entry == {k: v for k, v in first.items() if k not in ("blocks", "matrices", "history")}
    record = model.config.mwanda_config
    assert record["target_sparsity"] == 0.5
    assert [entry["settings"]["sparsity"] for entry in record["history"]] == pytest.approx(
        [0.05 * (step + 1) for step in range(1, 9)]
    )
    assert len({entry["model_fingerprint"] for entry in [record, *record["history"]]}) == 9


def test_an_unreadable_earlier_record_does_not_stop_pruning(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    model.config.mwanda_config = {"schema": 99}
    prune(model)
    assert model.config.mwanda_config["history"] == []
    assert "not carried into the history" in caplog.text


@pytest.mark.parametrize("calibration", ["dense", "sequential"])
@pytest.mark.parametrize("previous", [None, {"schema": 1, "kept": True}])
def test_a_failure_while_recording_leaves_model_and_config_as_before(
    calibration: str, previous: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    if previous is not None:
        model.config.mwanda_config = previous
    before = state_of(model)

    def fail(*_: Any) -> None:
        assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        raise KeyboardInterrupt

    monkeypatch.setattr(pruner_module, "build_record", fail)
    with pytest.raises(KeyboardInterrupt):
        prune(model, calibration=calibration)
    assert_untouched(model, before)
    assert getattr(model.config, "mwanda_config", None) is previous


def test_a_failure_while_pruning_leaves_no_record() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        prune(model, criterion="magnitude", allocation="uniform")
    assert not hasattr(model.config, "mwanda_config")


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "20kB"}])
def test_the_record_survives_saving_and_loading(save: dict[str, Any], tmp_path: Path) -> None:
    model = prune(make_model())
    record = copy.deepcopy(model.config.mwanda_config)
    model.save_pretrained(tmp_path / "1", **save)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "1", dtype=torch.bfloat16).half()
    again.save_pretrained(tmp_path / "2", **save)
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "2", num_labels=2)
    head.save_pretrained(tmp_path / "3")
    for place in (again, head, *(tmp_path / name for name in "123"), str(tmp_path / "3")):
        assert sparsity_record(place) == record


def test_the_record_survives_a_process_that_does_not_import_the_library(tmp_path: Path) -> None:
    model = prune(make_model())
    model.save_pretrained(tmp_path / "1")
    program = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.half().save_pretrained(sys.argv[2])
assert not [name for name in sys.modules if name.startswith("optimum_mwanda")]
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-c", program, str(tmp_path / "1"), str(tmp_path / "2")]
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment)
    assert sparsity_record(tmp_path / "2") == model.config.mwanda_config


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
    check_record(record)
    assert len(json.dumps({"mwanda_config": record}, indent=indent)) < 64_000


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("/home/me/models/dense", "dense"),
        ("/home/me/models/dense/", "dense"),
        ("./dense", "dense"),
        ("../models/dense", "dense"),
        ("runs/1/dense", "dense"),
        (r"C:\models\dense", "dense"),
        ("", ""),
    ],
)
def test_local_paths_are_cut_to_their_last_part(name: str, portable: str) -> None:
    assert _portable_name(name) == portable


def test_an_existing_folder_is_a_path_even_if_it_looks_like_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _portable_name("org/model") == "model"


def test_the_fingerprint_tells_models_apart() -> None:
    fingerprint = model_fingerprint(make_model())
    assert fingerprint == model_fingerprint(make_model())
    assert fingerprint != model_fingerprint(make_model(seed=1))
    assert fingerprint != model_fingerprint(make_model().bfloat16())
    changed = make_model()
    with torch.no_grad():
        changed.model.norm.weight[0] += 1
    assert fingerprint != model_fingerprint(changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8])
def test_zeros_of_either_sign_are_counted_in_any_dtype(dtype: torch.dtype) -> None:
    assert count_zeros(torch.tensor([[0.0, -0.0, 1.0], [2.0, -1.0, 0.0]]).to(dtype)) == 3


def test_a_checked_record_is_a_copy() -> None:
    record = make_record()
    checked = check_record(record)
    assert checked == record
    checked["blocks"]["names"].append("x")
    assert record == make_record()


def test_records_of_the_first_schema_are_read() -> None:
    record = make_record()
    assert record["schema"] == record["history"][0]["schema"] == 1
    assert check_record(record) == record


def make_mixture_record() -> dict[str, Any]:
    """A small valid record of a mixture of experts, made by hand from `docs/record.md`."""
    record = {**make_record(), "schema": 2}
    record["matrices"]["mlp.experts.up_proj"] = {"shape": [4, 2, 8], "zeros": [32, 32]}
    record["experts"] = {
        "policy": "shared",
        "wanted": 32,
        "count": 8,
        "lacking": 1,
        "names": ["layers.0.mlp.experts.3"],
        "fewest": 0,
        "unreached": {"sw": 2},
    }
    return record


def test_parameters_of_all_experts_have_three_sides() -> None:
    record = check_record(make_mixture_record())
    assert RecordedMatrix("layers.1.mlp.experts.up_proj", "layers.1", (4, 2, 8), 32) in recorded_matrices(record)


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
        check_record(record)


def test_unknown_keys_are_tolerated() -> None:
    record = make_record()
    record["later"] = {"anything": [1, None, "x"]}
    record["languages"]["en"]["script"] = "Latn"
    record["settings"]["later"] = True
    assert check_record(record) == record


@pytest.mark.parametrize("where", ["record", "history"])
def test_a_newer_schema_says_to_upgrade(where: str) -> None:
    record = {"schema": 3} if where == "record" else make_record()
    if where == "history":
        record["history"][0]["schema"] = 3
    with pytest.raises(ValueError, match=r"schema 3.*upgrade optimum-mwanda"):
        check_record(record)


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
        (lambda r: r.update(later={1: 2}), "no strings"),
    ],
)  # fmt: skip
def test_an_invalid_record_is_refused_by_name(change: Any, message: str) -> None:
    record = make_record()
    change(record)
    with pytest.raises(ValueError, match=message):
        check_record(record)


def test_two_ways_to_the_same_full_path_are_refused() -> None:
    record = make_record()
    record["blocks"]["names"] = ["a", "a.b"]
    record["matrices"] = {"b.c": {"shape": [2, 2], "zeros": [2, 2]}, "c": {"shape": [2, 2], "zeros": [None, 2]}}
    with pytest.raises(ValueError, match="different full paths"):
        check_record(record)


def test_deep_nesting_is_refused_without_exhausting_the_stack() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="deep"):
        check_record({**make_record(), "later": nested})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FUZZ = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}


def assert_valid_or_refused(record: Any) -> bool:
    """The one promise of the reader; whether the record was accepted."""
    try:
        checked = check_record(record)
    except ValueError:
        return False
    assert check_record(checked) == checked == record
    for matrix in recorded_matrices(checked):
        assert 0 <= matrix.zeros <= matrix.numel
    json.dumps(checked, allow_nan=False).encode()
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
    assert record is None or check_record(record) == record


def test_settings_are_recorded_as_the_config_gives_them_back() -> None:
    config = MWandaConfig(languages=["en", "sw"], samples_per_language=2, sequence_length=16, criterion="ria")
    model = make_model()
    MWandaPruner(config, progress=False).prune(model, make_rows())
    assert MWandaConfig.from_dict(model.config.mwanda_config["settings"]) == config
    assert list(model.config.mwanda_config["languages"]) == ["en", "sw"]
    assert dataclasses.asdict(config)["seed"] == model.config.mwanda_config["seed"]
