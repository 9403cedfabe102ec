"""What pruning will take is said before any weights are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

import optimum_mwanda.loading.footprint as footprint
import optimum_mwanda.loading.headers as headers
from optimum_mwanda import MWandaConfig, MWandaPruner, plan_pruning
from optimum_mwanda.loading.footprint import Footprint, Text
from optimum_mwanda.loading.forecasting import open_empty
from optimum_mwanda.loading.headers import read_headers
from optimum_mwanda.loading.probe import BlockTime
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights
from optimum_mwanda.walking import together
from tests.conftest import make_model, make_rows
from tests.families.matrix import FAMILIES

LENGTH = 16
SMALL: dict[str, Any] = {"samples_per_language": 4, "sequence_length": LENGTH, "batch_size": 2}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    return tmp_path / "dense"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)


@pytest.mark.usefixtures("no_weights")
def test_what_would_be_pruned_and_what_not(dense: Path) -> None:
    forecast = plan_pruning(dense, MWandaConfig(**SMALL, exclude=("*.o_proj",)), languages=3)
    assert set(forecast.blocks) == {"model.layers.0", "model.layers.1", "model.layers.2"}
    assert set(forecast.blocks.values()) == {(6, 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)}
    assert forecast.parameters == sum(parameter.numel() for parameter in make_model().parameters())
    assert sum(forecast.left_dense.values()) == forecast.parameters - forecast.prunable
    assert forecast.left_dense["left out by include or exclude"] == 3 * 32 * 32
    assert forecast.left_dense["in the blocks, but never pruned: norms, biases, routers"] == 3 * 2 * 32
    assert forecast.stored_bytes == 4 * forecast.parameters
    assert (forecast.languages, forecast.tokens) == (3, 3 * 4 * LENGTH)
    assert forecast.memory.seconds is not None
    assert forecast.stream.seconds > forecast.memory.seconds  # type: ignore[operator]
    assert forecast.memory.disk < forecast.stream.disk < 2.2 * forecast.memory.disk
    assert json.loads(json.dumps(forecast.to_dict()))["blocks"][0]["matrices"] == 6
    text = str(forecast)
    assert f"50.00% of {3 * (32 * 32 + 2 * 16 * 32 + 3 * 32 * 48):,} weights would be pruned" in text
    assert "| model.layers.0 to model.layers.2 |" in text
    assert "| streamed " in text


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"criterion": "magnitude", "allocation": "uniform"}, 0),
        ({}, 1),
        ({"refinement": "swap"}, 2),
        ({"refinement": "swap", "allocation": "uniform"}, 1),
        ({"refinement": "swap", "allocation": "uniform", "sensitivity": "fisher"}, 2),
        ({"calibration": "sequential", "allocation": "uniform"}, 2),
        ({"calibration": "sequential", "allocation": "uniform", "calibration_tolerance": 0.1}, 3),
        ({"reconstruction": "obs"}, 3),
        ({"reconstruction": "block", "reconstruction_epochs": 5}, 9),
        ({"reconstruction": "block", "refinement": "block", "reconstruction_epochs": 5}, 14),
        ({"reconstruction": "block", "reconstruction_blocks": 2, "reconstruction_epochs": 5}, 10),
        ({"language_weights": "minimax"}, 2),
        (
            {"reconstruction": "obs", "language_weights": "minimax", "minimax_rounds": 2, "tune_regularisation": True},
            13,
        ),
    ],
    ids=str,
)
def test_passes_follow_from_the_settings(settings: dict[str, Any], passes: int, dense: Path) -> None:
    forecast = plan_pruning(dense, MWandaConfig(**SMALL, **settings), timed=False)
    assert sum(forecast.passes.values()) == passes
    assert bool(forecast.tokens) is bool(passes)


@pytest.mark.parametrize("settings", [{"language_weights": "minimax"}, {"tune_regularisation": True}], ids=str)
def test_what_is_found_by_trying_cannot_be_streamed(dense: Path, settings: dict[str, Any]) -> None:
    forecast = plan_pruning(dense, MWandaConfig(**SMALL, reconstruction="obs", **settings), timed=False)
    assert "Cannot be streamed: some settings are found by trying" in str(forecast)


def test_reading_until_channels_settle_cannot_be_streamed(dense: Path) -> None:
    forecast = plan_pruning(dense, MWandaConfig(**SMALL, calibration_tolerance=0.1), timed=False)
    assert "Cannot be streamed: how much text is enough" in str(forecast)


def test_what_sensitivities_take_is_told(dense: Path) -> None:
    plain, swaps = (
        plan_pruning(dense, MWandaConfig(**SMALL, refinement="swap", sensitivity=each), timed=False)
        for each in ("none", "fisher")
    )
    assert "Cannot be streamed: sensitivities" in str(swaps)
    assert "Cannot be streamed" not in str(plain)
    # Two matrices (out, out) for each matrix of the model: q, o and down have 32 rows, k and v 16, gate and up 48.
    factors = 4 * 3 * (3 * 32**2 + 2 * 16**2 + 2 * 48**2)
    assert swaps.memory.memory >= plain.memory.memory + factors


def test_text_is_counted_as_it_is_cut(dense: Path) -> None:
    forecast = plan_pruning(dense, MWandaConfig(**SMALL), make_rows("en sw", rows=3, length=LENGTH), timed=False)
    assert (forecast.languages, forecast.tokens) == (2, 2 * 3 * LENGTH)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "3:7"}, "does not divide the 32 inputs"),
        ({"include": ["*.nothing"]}, "matches none"),
        ({"blocks": ["model.nothing"]}, "is not a list of modules"),
        ({"sequence_length": 65}, "exceeds the model's 64 positions"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str, dense: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan_pruning(dense, MWandaConfig(**settings))


def test_quantized_checkpoints_are_refused(dense: Path) -> None:
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="is quantized by gptq"):
        plan_pruning(dense)


def test_repositories_need_only_their_headers(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

    info = TensorInfo(dtype="BF16", shape=[2, 3], data_offsets=(0, 12))
    file = SafetensorsFileMetadata(metadata={}, tensors={"weight": info})
    found = SafetensorsRepoMetadata(None, False, {"weight": "model.safetensors"}, {"model.safetensors": file})
    asked = []

    def metadata(repository: str, **source: Any) -> SafetensorsRepoMetadata:
        asked.append((repository, source))
        return found

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    tensors = read_headers("nobody/not-in-the-cache", revision="main")
    assert asked == [("nobody/not-in-the-cache", {"revision": "main"})]
    assert tensors == {"weight": headers.StoredTensor("BF16", (2, 3), 12)}
    assert headers.dtype_of(tensors) == "bfloat16"
    assert len(read_headers(dense)) == len(make_model().state_dict())


class Work:
    """A clock that counts what blocks and decisions work on instead of seconds."""

    def __init__(self) -> None:
        self.done = 0.0

    def __call__(self) -> float:
        return self.done

    def count(self, module: nn.Module, args: Any, *_: Any) -> None:
        if isinstance(module, GradientCheckpointingLayer):
            self.done += args[0].numel()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    counter, decide = Work(), together.mask_and_values

    def counted(weight: Any, *args: Any) -> Any:
        counter.done += weight.numel
        return decide(weight, *args)

    monkeypatch.setattr(together, "mask_and_values", counted)
    handle = nn.modules.module.register_module_forward_hook(counter.count)
    yield counter
    handle.remove()


@pytest.mark.parametrize("settings", [{}, {"refinement": "swap"}, {"calibration": "sequential"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_time_is_right_to_within_a_factor(family: str, settings: dict[str, Any], work: Work, tmp_path: Path) -> None:
    model = FAMILIES[family].make()
    model.save_pretrained(tmp_path / "dense")
    config = MWandaConfig(**{**SMALL, "samples_per_language": 12}, **settings)
    rows = make_rows("en sw fr", rows=12, length=LENGTH)
    forecast = plan_pruning(tmp_path / "dense", config, rows, clock=work)
    work.done = 0
    MWandaPruner(config, progress=False).prune(model, rows)
    assert forecast.untimed == ""
    assert work.done / 1.5 < forecast.memory.seconds < work.done * 1.5  # type: ignore[operator]


def test_time_from_disk_has_what_is_not_done_beside_the_work() -> None:
    spent = BlockTime(fixed=1.0, per_batch=0.5, share=0.25, reading=0.1, keeping=0.2)
    assert spent.seconds(2) == 8
    assert spent.streamed(2, read=10, kept=20, in_one_pass=True) == 8 + 1 + 2  # the other half beside the work
    assert spent.streamed(2, read=10, kept=60, in_one_pass=True) == 8 + 1 + 6
    assert spent.streamed(2, read=10, kept=60, in_one_pass=False) == 8 + 1 + 8  # the disk is slower than deciding
    assert spent.streamed(2, read=10, kept=100, in_one_pass=True) == 8 + 1 + 12


@pytest.mark.parametrize("family", ["t5", "bert", "gemma3", "qwen3_moe", "falcon"])
def test_blocks_of_all_kinds_are_timed(family: str, tmp_path: Path) -> None:
    FAMILIES[family].make().save_pretrained(tmp_path / "dense")
    config = MWandaConfig(**SMALL, calibration="sequential")
    forecast = plan_pruning(tmp_path / "dense", config)
    assert forecast.untimed == ""
    assert forecast.stream.seconds > 0  # type: ignore[operator]


def test_excluded_blocks_are_not_the_one_that_is_timed(dense: Path) -> None:
    config = MWandaConfig(**SMALL, exclude=("model.layers.0.*", "*.down_proj"))
    forecast = plan_pruning(dense, config)
    assert forecast.untimed == ""
    assert forecast.blocks.keys() == {"model.layers.1", "model.layers.2"}


def test_a_model_that_cannot_be_timed_is_planned_all_the_same(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("optimum_mwanda.loading.forecasting.time_block", fail)
    forecast = plan_pruning(dense)
    assert forecast.memory.seconds is None
    assert "one block of LlamaForCausalLM does not run by itself (IndexError: list index" in str(forecast)


def test_random_numbers_of_the_caller_stay_the_same(dense: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    plan_pruning(dense, MWandaConfig(**SMALL))
    assert torch.equal(torch.rand(3), wanted)


def test_streaming_needs_less_memory_the_more_blocks_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "RELEASED_AFTER", 0)  # of the output, more would be read at a time than there is
    found = []
    for layers in (4, 40):
        config = make_model().config
        config.num_hidden_layers = layers
        type(make_model())(config).save_pretrained(tmp_path / str(layers))
        checkpoint = open_empty(tmp_path / str(layers))
        sizes = Footprint(checkpoint.model, checkpoint.blocks, checkpoint.weights, checkpoint.settings, Text(64, 64, 1))
        found.append((sizes.in_memory(0, True), sizes.streamed(0, True), sizes.statistics))
    (_, few, sums), (whole, many, more_sums) = found
    assert many < whole
    assert many - few == more_sums - sums  # only statistics grow


def test_swaps_of_few_rows_are_compared_at_a_time_on_a_cpu_and_of_many_elsewhere(dense: Path) -> None:
    def more(device: str) -> int:
        plans = [
            plan_pruning(dense, MWandaConfig(**SMALL, refinement=each), device=device, timed=False)
            for each in ("none", "swap")
        ]
        peaks = [
            plan.memory.memory if plan.memory.device_memory is None else plan.memory.device_memory for plan in plans
        ]
        return peaks[1] - peaks[0]

    assert more("cpu") < 2**25
    assert more("cuda") > 2**27


def test_a_gpu_lists_half_of_a_whole_matrix_with_their_places() -> None:
    sizes = make_model().config
    sizes.intermediate_size = 2**18
    with torch.device("meta"):
        model = type(make_model())(sizes)
    blocks = find_blocks(model)

    def working(group: str, is_on_cpu: bool) -> int:
        config = MWandaConfig(criterion="magnitude", allocation="uniform", group=group)
        return Footprint(model, blocks, find_weights(blocks), config, Text(8, 8, 1)).working(is_on_cpu)

    entries = 2**18 * sizes.hidden_size
    assert working("matrix", True) == working("row", True) == working("row", False)
    assert working("matrix", False) == 17 * entries


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_sparsegpt_needs_one_gram_matrix_and_two_more_if_that_is_shrunk(shrinkage: float, tmp_path: Path) -> None:
    peaks = []
    for width in (512, 1024):
        config = make_model().config
        config.intermediate_size = width
        type(make_model())(config).save_pretrained(tmp_path / str(width))
        settings = MWandaConfig(
            **SMALL, criterion="sparsegpt", allocation="uniform", reconstruction_shrinkage=shrinkage
        )
        checkpoint = open_empty(tmp_path / str(width), settings)
        text = Text(64, 64, 1)
        sizes = Footprint(checkpoint.model, checkpoint.blocks, checkpoint.weights, checkpoint.settings, text)
        peaks.append(sizes.working(is_on_cpu=True))
    squares = 4 * (1024**2 - 512**2)
    assert peaks[1] - peaks[0] == pytest.approx((3 if shrinkage else 25 / 16) * squares, rel=0.15)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("activations", ["device", "cpu", "file"])
def test_hidden_states_are_counted_once_where_they_are(
    device: str, activations: str, dense: Path, tmp_path: Path
) -> None:
    place = tmp_path if activations == "file" else activations

    def counted(languages: int) -> list[tuple[int, int, int]]:
        config = MWandaConfig(**SMALL, calibration="sequential", allocation="uniform")
        options = {"languages": languages, "device": device, "activations": place, "timed": False}
        forecast = plan_pruning(dense, config, **options)
        modes = (forecast.memory, forecast.stream)
        return [(mode.memory, mode.device_memory or 0, mode.disk) for mode in modes]

    for before, after in zip(counted(1), counted(2001), strict=True):
        grown = [after[number] - before[number] for number in range(3)]
        hidden = 2000 * 4 * LENGTH * 32 * 4
        where = 2 if activations == "file" else 1 if device == "cuda" and activations == "device" else 0
        sums = 2000 * 8 * 3 * (6 * 32 + 48)  # these are where blocks run
        for number, bytes_more in enumerate(grown):
            assert bytes_more >= hidden if number == where else bytes_more <= 2 * sums + 2000


def test_fused_experts_are_kept_on_disk_in_the_form_in_which_they_run(tmp_path: Path) -> None:
    for family in ("mixtral", "llama"):
        FAMILIES[family].make().save_pretrained(tmp_path / family)
    settings = MWandaConfig(**SMALL)
    mixture = plan_pruning(tmp_path / "mixtral", settings, timed=False)
    plain = plan_pruning(tmp_path / "llama", settings, timed=False)
    assert mixture.stream.disk > 2.5 * mixture.memory.disk
    assert plain.stream.disk < 2.2 * plain.memory.disk


def test_every_timed_run_begins_with_a_dense_model(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune, zeros = MWandaPruner.prune, []

    def noted(self: MWandaPruner, model: Any, *args: Any) -> Any:
        zeros.append(sum(int((weight == 0).sum()) for weight in model.model.layers.parameters()))
        return prune(self, model, *args)

    monkeypatch.setattr(MWandaPruner, "prune", noted)
    plan_pruning(dense, MWandaConfig(**SMALL, refinement="swap"))
    assert len(zeros) > 1
    assert set(zeros) == {0}
