"""Offloaded models are pruned block by block, with the same result as in memory, and nothing is lost on failure."""

import copy
import hashlib
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from accelerate.utils import OffloadedWeightsLoader
from packaging.version import Version
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, check_saved, verify_sparsity
from optimum_mwanda.loading.streamed import blocks_on_disk
from optimum_mwanda.modeling import block_source, fingerprint
from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.offloading import hooks_of, offloaded_tensor
from optimum_mwanda.storage.journal import Journal
from optimum_mwanda.storage.read_back import save_checked
from optimum_mwanda.walking.editor import PartiallyPrunedError, WeightEditor
from tests.conftest import make_model
from tests.families.matrix import FAMILIES

TEN = ("llama", "gemma3", "gemma4_text", "gpt2", "bloom", "mixtral", "jamba", "dbrx", "t5", "xlm-roberta")
METHODS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "spectrum": {"allocation": "alpha"},
    "sequential": {"calibration": "sequential"},
    "new values": {"refinement": "swap", "reconstruction": "obs"},
    "trained": {"reconstruction": "block", "reconstruction_epochs": 2},
    "trained masks": {"refinement": "swap+block", "reconstruction": "block", "reconstruction_epochs": 1},
    "trained parts": {"reconstruction": "block", "reconstruction_region": "part", "reconstruction_epochs": 1},
    "trained blocks": {"reconstruction": "block", "reconstruction_blocks": 2, "reconstruction_epochs": 1},
    "solver": {"criterion": "sparsegpt", "calibration": "sequential", "pattern": "2:4", "allocation": "uniform"},
}


def on_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder / "dense")
    loaded = type(model).from_pretrained(
        folder / "dense", device_map=blocks_on_disk(model, "cpu"), offload_folder=str(folder / "offload")
    )
    assert all(weight.is_meta for block in find_blocks(loaded).values() for weight in block.parameters())
    return loaded


def in_memory(model: PreTrainedModel, _: Path) -> PreTrainedModel:
    accelerate.cpu_offload(model, torch.device("cpu"))
    return model


def state(model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    found = {name: offloaded_tensor(model, name) if t.is_meta else t for name, t in model.state_dict().items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    found, expected = state(one), state(other)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def pruner(**settings: Any) -> MWandaPruner:
    return MWandaPruner(MWandaConfig(sequence_length=24, batch_size=2, **settings), progress=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [name for name in TEN if FAMILIES[name].is_current])
def test_blocks_on_disk_get_the_masks_and_values_that_they_get_in_memory(
    family: str, method: str, tmp_path: Path
) -> None:
    plain = FAMILIES[family].make()
    model = on_disk(plain, tmp_path)
    source = digests(tmp_path / "dense")
    for each in (model, plain):
        pruner(**METHODS[method]).prune(each, FAMILIES[family].rows())
    assert same(model, plain)
    assert model.config.mwanda_config == {**plain.config.mwanda_config, "model": "dense"}
    assert all(weight.is_meta for block in find_blocks(model).values() for weight in block.parameters())
    assert digests(tmp_path / "dense") == source


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_blocks_that_are_offloaded_to_memory_are_pruned_there(family: str, tmp_path: Path) -> None:
    plain, model = FAMILIES[family].make(), in_memory(FAMILIES[family].make(), tmp_path)
    for each in (model, plain):
        pruner(refinement="swap").prune(each, FAMILIES[family].rows())
    assert same(model, plain)


def test_parts_of_the_pruner_take_offloaded_models(tmp_path: Path) -> None:
    plain = FAMILIES["llama"].make()
    model = on_disk(plain, tmp_path)
    settings = {"criterion": "mwanda", "activation": "positive", "allocation": "owl"}
    one, other = (pruner(**settings).calibrate(each, FAMILIES["llama"].rows()) for each in (model, plain))
    assert one.model_fingerprint == other.model_fingerprint
    for name, entry in other.weights.items():
        assert torch.equal(one.weights[name].square_sum, entry.square_sum)
        assert torch.equal(one.weights[name].active["positive"], entry.active["positive"])
    assert pruner(**settings).allocate(model, one) == pruner(**settings).allocate(plain, other)
    for each in (model, plain):
        pruner(**settings).apply(each, one)
    assert same(model, plain)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_pruned_models_on_disk_are_saved_shard_by_shard_and_pruned_again(family: str, tmp_path: Path) -> None:
    plain = FAMILIES[family].make()
    model = on_disk(plain, tmp_path)
    for each in (model, plain):
        pruner(sparsity=0.3).prune(each, FAMILIES[family].rows())
    assert verify_sparsity(model).ok
    if family == "mixtral" and Version(transformers.__version__) < Version("5.14"):
        with pytest.raises(ValueError, match=r"install transformers 5\.14 or later"):
            save_checked(model, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    else:
        save_checked(model, tmp_path / "saved", max_shard_size="20KB")
        check_saved(plain, tmp_path / "saved")
    for each in (model, plain):
        pruner(sparsity=0.6).prune(each, FAMILIES[family].rows())
    assert same(model, plain)
    assert len(model.config.mwanda_config["history"]) == 1


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("offload", [on_disk, in_memory])
def test_a_failure_leaves_the_dense_model(
    offload: Callable[..., PreTrainedModel], restore: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, model = FAMILIES["llama"].make(), offload(FAMILIES["llama"].make(), tmp_path)
    zero, calls = WeightEditor.zero, []

    def failing(*args: Any) -> None:
        zero(*args)
        calls.append(args)
        if len(calls) == 9:  # in the second block
            raise OSError("no space left")

    monkeypatch.setattr(WeightEditor, "zero", failing)
    broken = pruner(calibration="sequential")
    broken.restore_on_failure = restore
    expected = OSError if restore or offload is on_disk else PartiallyPrunedError
    with pytest.raises(expected, match="no space left"):
        broken.prune(model, FAMILIES["llama"].rows())
    assert same(model, plain) == (expected is OSError)
    hooks = [hook for block in find_blocks(model).values() for m in block.modules() for hook in hooks_of(m)]
    assert all(hook.offload for hook in hooks if hook.weights_map is not None)
    if offload is on_disk:
        assert list((tmp_path / "offload").glob("*.safetensors")) == []
    monkeypatch.undo()
    if expected is OSError:
        for each in (model, plain):
            pruner().prune(each, FAMILIES["llama"].rows())
        assert same(model, plain)


def test_a_model_on_disk_without_a_folder_for_changes_is_refused(tmp_path: Path) -> None:
    plain = FAMILIES["llama"].make()
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path, device_map=blocks_on_disk(plain, "cpu"))
    with pytest.raises(ValueError, match="load the model with offload_folder="):
        pruner().prune(model, FAMILIES["llama"].rows())


@pytest.mark.parametrize("changes", [False, True], ids=["as they are", "changed"])
def test_a_block_comes_when_half_of_the_last_one_is_gone(
    changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_model().config
    config.num_hidden_layers = 6
    model = on_disk(LlamaForCausalLM(config), tmp_path)
    blocks = find_blocks(model)
    source, asked = BlockSource(blocks), threading.Event()
    copy_one, read, write, values = block_source._copy, BlockSource._read, BlockSource._write, []

    def left() -> int:
        return sum(tensor.nbytes for block in values[:-1] for reference in block if (tensor := reference()) is not None)

    def counted(tensor: Any) -> torch.Tensor:
        assert 2 * left() <= sum(weight.nbytes for weight in next(iter(blocks.values())).parameters())
        value = copy_one(tensor)
        values[-1].append(weakref.ref(value))
        return value

    def noted(*args: Any) -> Any:
        values.append([])
        asked.set()
        return read(*args)

    def late(*args: Any) -> Path:
        assert asked.wait(60)
        return write(*args)

    monkeypatch.setattr(block_source, "_copy", counted)
    monkeypatch.setattr(BlockSource, "_read", noted)
    monkeypatch.setattr(BlockSource, "_write", late)
    for name in source.one_by_one(blocks):
        full = [each for each, block in blocks.items() if not any(weight.is_meta for weight in block.parameters())]
        assert full == [name]
        asked.clear()
        if changes:
            for weight in blocks[name].parameters():
                weight.detach().zero_()
        if len(values) == len(blocks):
            asked.set()
    assert len(values) == len(blocks)
    for name in source.one_by_one(blocks):
        assert (next(blocks[name].parameters()).count_nonzero() == 0) == changes


def test_a_block_is_written_while_the_next_is_worked_on(tmp_path: Path) -> None:
    model = on_disk(FAMILIES["llama"].make(), tmp_path)
    blocks = find_blocks(model)
    source, worked_on, written = BlockSource(blocks), threading.Event(), []

    def keep(name: str, values: dict[str, torch.Tensor]) -> Path:
        taken = {key: values.pop(key).detach() for key in [*values]}
        assert worked_on.wait(60)
        if written:
            raise OSError("no space left")
        written.append(name)
        save_file(taken, tmp_path / "kept.safetensors")
        return tmp_path / "kept.safetensors"

    source.keep = keep
    first, second, *_ = blocks
    seen = []

    def change() -> None:
        for name in source.one_by_one([first, second]):
            seen.append(name)
            if name == second:
                worked_on.set()
            for weight in blocks[name].parameters():
                weight.detach().zero_()

    with pytest.raises(OSError, match="no space left"):  # of the last block as well
        change()
    assert (seen, written) == ([first, second], [first])
    for name, count in ((first, 0), (second, 1)):
        with source.held(name):
            assert next(blocks[name].parameters()).any() == count


@pytest.mark.parametrize("last", [False, True], ids=["in the next block", "while the last one is written"])
def test_what_interrupts_the_work_is_told_even_if_a_block_could_not_be_written(
    last: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = on_disk(FAMILIES["llama"].make(), tmp_path)
    blocks = find_blocks(model)
    source = BlockSource(blocks)

    def keep(*_: Any) -> Path:
        raise OSError("no space left")

    def work() -> None:
        first, second, *_ = blocks
        with closing(source.one_by_one([first] if last else [first, second])) as names:
            for name in names:
                if name == second:
                    raise KeyboardInterrupt
                next(blocks[name].parameters()).detach().zero_()

    source.keep = keep
    with pytest.raises(OSError if last else KeyboardInterrupt):
        work()
    assert ("model.layers.0 could not be written: no space left" in caplog.messages) != last


SHARED = "model.layers.{}.mlp.up_proj.weight"


def make_sharing(distance: int) -> PreTrainedModel:
    """A model of four blocks, in which the first one shares a matrix with a later one."""
    kind = type("Shared", (LlamaForCausalLM,), {"_tied_weights_keys": {SHARED.format(distance): SHARED.format(0)}})
    config = make_model().config
    config.num_hidden_layers, config.tie_word_embeddings = 4, True
    return kind(config).eval()


@pytest.mark.parametrize("distance", [1, 2])
@pytest.mark.parametrize("method", ["defaults", "sequential", "new values"])
def test_a_matrix_that_blocks_share_is_pruned_for_all_of_them(method: str, distance: int, tmp_path: Path) -> None:
    plain = make_sharing(distance)
    model = on_disk(plain, tmp_path)
    for each in (model, plain):
        pruner(**METHODS[method]).prune(each, FAMILIES["llama"].rows())
    assert same(model, plain)
    assert not torch.equal(state(plain)[SHARED.format(0)], state(plain)[SHARED.format(3)])


@pytest.mark.parametrize("distance", [1, 2])
def test_blocks_that_share_a_matrix_are_not_trained_together_from_disk(distance: int, tmp_path: Path) -> None:
    """Each would have a copy of its own; blocks of different groups may share one."""
    plain = make_sharing(distance)
    model = on_disk(plain, tmp_path)
    before = state(model)
    work = pruner(**METHODS["trained blocks"])
    work.prune(plain, FAMILIES["llama"].rows())
    if distance == 1:
        with pytest.raises(ValueError, match=r"layers.0' and 'model.layers.1' share .*cannot be trained together"):
            work.prune(model, FAMILIES["llama"].rows())
        assert all(torch.equal(values, state(model)[name]) for name, values in before.items())
    else:
        work.prune(model, FAMILIES["llama"].rows())
        assert same(model, plain)


@pytest.mark.parametrize("place", ["mlp", "self_attn"])
def test_blocks_that_are_partly_on_disk_are_pruned_and_restored(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FAMILIES["llama"].make()
    plain.save_pretrained(tmp_path / "dense")
    places = {name: "cpu" for name, module in plain.named_modules() if not [*module.children()]}
    places |= {name: "disk" for name in places if f".{place}." in name}
    options = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    model = type(plain).from_pretrained(tmp_path / "dense", **options)
    zero, calls = WeightEditor.zero, []

    def failing(*args: Any) -> None:
        zero(*args)
        calls.append(args)
        if len(calls) == 12:
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(WeightEditor, "zero", failing)
        with pytest.raises(OSError, match="no space left"):
            pruner(calibration="sequential").prune(model, FAMILIES["llama"].rows())
    assert same(model, plain)
    for each in (model, plain):
        pruner(calibration="sequential").prune(each, FAMILIES["llama"].rows())
    assert same(model, plain)
    with pytest.raises(ValueError, match="A journal keeps blocks that are on disk"):
        MWandaPruner(journal=Journal(tmp_path / "journal")).prune(model, FAMILIES["llama"].rows())
    assert not (tmp_path / "journal").exists()


def test_blocks_of_an_earlier_run_are_given_back_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FAMILIES["llama"].make()
    model = on_disk(plain, tmp_path)
    put, rows = Journal.put, FAMILIES["llama"].rows()

    def prune(blocks: int) -> None:
        parts = []

        def failing(self: Journal, *args: Any) -> Path:
            parts.append(args)
            if len(parts) > blocks:
                raise OSError("no space left")
            return put(self, *args)

        config = MWandaConfig(sequence_length=24, batch_size=2, calibration="sequential", allocation="uniform")
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "put", failing)
            MWandaPruner(config, progress=False, journal=Journal(tmp_path / "journal")).prune(model, rows)

    for blocks in (1, 0):
        with pytest.raises(OSError, match="no space left"):
            prune(blocks)
        assert same(model, plain)
        assert len(list((tmp_path / "journal").glob("*.safetensors"))) == 1
    prune(1)
    pruner(calibration="sequential", allocation="uniform").prune(plain, rows)
    assert same(model, plain)


def test_calibrating_alone_keeps_nothing_in_a_journal(tmp_path: Path) -> None:
    model = on_disk(FAMILIES["llama"].make(), tmp_path)
    MWandaPruner(
        MWandaConfig(sequence_length=24, batch_size=2), progress=False, journal=Journal(tmp_path / "journal")
    ).calibrate(model, FAMILIES["llama"].rows())
    assert not (tmp_path / "journal").exists()


def test_undoing_reads_a_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_memory(FAMILIES["mixtral"].make(), tmp_path)
    read, names = BlockSource._read, []
    attach = "optimum_mwanda.execution.attach_record"

    def fail(*_: Any) -> None:
        names.clear()
        raise OSError("no space left")

    monkeypatch.setattr(BlockSource, "_read", lambda self, name, *rest: names.append(name) or read(self, name, *rest))
    monkeypatch.setattr(attach, fail)
    with pytest.raises(OSError, match="no space left"):
        pruner().prune(model, FAMILIES["mixtral"].rows())
    assert names == [*reversed(find_blocks(model))]
    assert same(model, FAMILIES["mixtral"].make())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


READS: tuple[tuple[dict[str, Any], int], ...] = (
    ({"criterion": "magnitude", "allocation": "uniform"}, 1),
    ({"criterion": "magnitude", "allocation": "alpha"}, 2),
    ({"criterion": "wanda", "allocation": "uniform"}, 2),  # for statistics, and for masks
    ({"criterion": "wanda", "allocation": "owl"}, 2),  # importance is taken with the statistics
    ({"criterion": "wanda", "allocation": "alpha"}, 2),
    ({"refinement": "swap", "allocation": "owl"}, 2),
    ({"refinement": "swap", "allocation": "uniform"}, 1),
    ({"calibration": "sequential", "allocation": "uniform"}, 1),
    ({"calibration": "sequential", "allocation": "owl"}, 2),
    ({"calibration": "sequential", "allocation": "alpha"}, 2),
)
"""Settings, and how often each weight of each block is read, by whomever."""


@pytest.mark.parametrize("family", ["llama", "bloom", "bart"])
def test_blocks_are_read_no_oftener_than_settings_need(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_disk(FAMILIES[family].make(), tmp_path)
    inside = {f"{name}.{path}" for name, block in find_blocks(model).items() for path, _ in block.named_parameters()}
    monkeypatch.setattr(fingerprint, "offloaded", lambda _: {})  # it looks at 16 values of each weight
    get, names = OffloadedWeightsLoader.__getitem__, []
    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", lambda self, key: names.append(key) or get(self, key))
    for settings, times in READS:
        names.clear()
        pruner(**settings).prune(model, FAMILIES[family].rows())
        assert {name: names.count(name) for name in inside} == dict.fromkeys(inside, times), settings


def test_files_of_an_offloaded_model_are_no_larger_than_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    plain = FAMILIES["llama"].make()
    model = on_disk(plain, tmp_path)
    save_checked(plain, tmp_path / "plain")
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) == 1
    monkeypatch.setattr("optimum_mwanda.storage.read_back.LEAST_SHARD", 0)
    save_checked(model, tmp_path / "saved")
    block = max(sum(weight.nbytes for weight in each.parameters()) for each in find_blocks(model).values())
    files = list((tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < block + 4096 for path in files)  # a header comes on top
    assert not [each for each in recwarn if "offloaded modules" in str(each.message)]


def test_what_an_earlier_pruning_wrote_goes_when_nobody_reads_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, model, plain = FAMILIES["llama"].rows(), on_disk(FAMILIES["llama"].make(), tmp_path), FAMILIES["llama"].make()
    source = digests(tmp_path / "dense")
    pruner(sparsity=0.4).prune(model, rows)
    first = {path.name for path in (tmp_path / "offload").glob("*.safetensors")}
    assert len(first) == len(find_blocks(model))
    with monkeypatch.context() as patch:
        patch.setattr("optimum_mwanda.execution.attach_record", fail)
        with pytest.raises(RuntimeError, match="no record"):
            pruner(sparsity=0.6).prune(model, rows)
    assert {path.name for path in (tmp_path / "offload").glob("*.safetensors")} == first
    pruner(sparsity=0.6).prune(model, rows)
    second = {path.name for path in (tmp_path / "offload").glob("*.safetensors")}
    assert len(second) == len(first)
    assert not second & first
    for sparsity in (0.4, 0.6):
        pruner(sparsity=sparsity).prune(plain, rows)
    assert same(model, plain)
    assert digests(tmp_path / "dense") == source


def test_what_a_copy_of_the_model_reads_stays(tmp_path: Path) -> None:
    rows, model, plain = FAMILIES["llama"].rows(), on_disk(FAMILIES["llama"].make(), tmp_path), FAMILIES["llama"].make()
    pruner(sparsity=0.4).prune(model, rows)
    pruner(sparsity=0.6).prune(copy.deepcopy(model), rows)
    pruner(sparsity=0.4).prune(plain, rows)
    assert same(model, plain)


def fail(*_: Any) -> None:
    raise RuntimeError("no record")
