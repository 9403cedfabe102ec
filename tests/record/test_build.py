import copy
import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from optimum_mwanda import MWandaConfig, MWandaPruner, __version__, execution
from optimum_mwanda.calibration.statistics import CalibrationStatistics
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.counting import count_zeros
from optimum_mwanda.modeling.fingerprint import model_fingerprint
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.pruning.experts_policy import expert_coverage
from optimum_mwanda.record.build import _experts, build_record
from optimum_mwanda.record.parts import RecordedExperts
from optimum_mwanda.record.schema import SparsityRecord
from optimum_mwanda.record.verification import sparsity_record, verify_sparsity
from tests.conftest import assert_untouched, make_model, make_rows, state_of
from tests.forked import python
from tests.storage.families import make_family

from .examples import make_record

BLOCKS = [f"model.layers.{index}" for index in range(3)]


def prune(model: Any, **changes: Any) -> Any:
    config = MWandaConfig(samples_per_language=2, sequence_length=16, **changes)
    return MWandaPruner(config, progress=False).prune(model, make_rows())


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
    parsed = SparsityRecord.parse(record)
    assert json.dumps(record) == json.dumps(json.loads(json.dumps(record))) == json.dumps(parsed.to_dict())
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
    assert {m.name: (m.zeros, m.shape) for m in parsed.matrices} == {
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
    assert record.experts == RecordedExperts(
        policy=policy,
        wanted=3,
        count=8,
        lacking=1,
        names=(expert(0, 2),),
        fewest=0,
        unreached={"en": 1, "fr": 1, "sw": 1},
    )
    share = 7 / 8 if policy == "skip" else 1
    zeros = sum(matrix.zeros for matrix in record.matrices if matrix.path.startswith("mlp.experts."))
    assert zeros / (2 * 4 * (96 * 32 + 32 * 48)) == pytest.approx(0.5 * share, abs=0.05)


def test_zeros_are_those_that_are_given_and_no_value_is_looked_at() -> None:
    model = make_family("mixtral")
    config = MWandaConfig(criterion="magnitude", allocation="uniform")
    weights, plan = find_weights(find_blocks(model)), MWandaPruner(config, progress=False).allocate(model)
    zeros = {weight.stored: count for count, weight in enumerate(flat(weights))}
    model.to("meta")
    record = build_record(model, config, weights, zeros, plan, None, "a" * 64)
    assert {matrix.name: matrix.zeros for matrix in record.matrices} == zeros
    assert record.achieved_sparsity == sum(zeros.values()) / sum(matrix.numel for matrix in record.matrices)


def test_zeros_of_experts_that_are_left_dense_count() -> None:
    model = make_family("mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1, :3] = 0
    config = MWandaConfig(criterion="magnitude", allocation="uniform", exclude=("*.experts.1.*",))
    MWandaPruner(config, progress=False).apply(model)
    assert verify_sparsity(model).ok


def test_few_names_of_many_experts_are_recorded() -> None:
    _, config, statistics = calibrated_mixture(min_expert_tokens=1000)
    names = [f"model.layers.0.mlp.experts.{number}" for number in range(50)]
    entry = next(iter(statistics.weights.values()))
    weights = {f"{name}.down_proj": entry for name in names}
    statistics = dataclasses.replace(statistics, weights=weights, experts=tuple(names))
    found = _experts(config, expert_coverage(statistics, config))
    assert (found["count"], found["lacking"], found["names"]) == (50, 50, names[:32])
    SparsityRecord.parse(make_record() | {"languages": {}, "experts": found | {"unreached": {}}})


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
    config = MWandaConfig(criterion="magnitude", group="matrix", allocation="uniform")
    pruner = MWandaPruner(config, progress=False)
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

    monkeypatch.setattr(execution, "build_record", fail)
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
        found = sparsity_record(place)
        assert found is not None
        assert found.to_dict() == record


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
    arguments = [python(), "-c", program, str(tmp_path / "1"), str(tmp_path / "2")]
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment)
    assert sparsity_record(tmp_path / "2") == sparsity_record(model)


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
    matrix = torch.tensor([[0.0, -0.0, 1.0], [2.0, -1.0, 0.0]]).to(dtype)
    for tensor in (matrix, matrix.T, matrix.repeat_interleave(2, 0)[::2, None]):
        assert count_zeros(tensor) == 3
    assert [count_zeros(matrix[0, column]) for column in range(3)] == [1, 1, 0]
    assert count_zeros(matrix[:, :0]) == 0


def test_settings_are_recorded_as_the_config_gives_them_back() -> None:
    config = MWandaConfig(languages=["en", "sw"], samples_per_language=2, sequence_length=16, criterion="ria")
    model = make_model()
    MWandaPruner(config, progress=False).prune(model, make_rows())
    assert MWandaConfig.from_dict(model.config.mwanda_config["settings"]) == config
    assert list(model.config.mwanda_config["languages"]) == ["en", "sw"]
    assert dataclasses.asdict(config)["seed"] == model.config.mwanda_config["seed"]
