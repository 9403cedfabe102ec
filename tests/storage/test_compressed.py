import json
import os
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from optimum_mwanda.storage import compressed
from optimum_mwanda.storage.coded import CODE, FORM, CodedTensor, decoded_view
from optimum_mwanda.storage.compressed import compress, decompress, save_pretrained_compressed
from optimum_mwanda.storage.files import COMPRESSED_INDEX_FILE as INDEX
from optimum_mwanda.storage.files import COMPRESSED_WEIGHTS_FILE as WEIGHTS
from optimum_mwanda.storage.writer import SafetensorsWriter

from ..conftest import make_model, state_of

WEIGHT = "model.layers.0.mlp.up_proj.weight"


def make_sparse(model: PreTrainedModel, pattern: tuple[int, int] | None = None) -> PreTrainedModel:
    """Half of every matrix of the blocks is zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and (".layers." in name or ".h." in name):
            groups = parameter.data.view(-1, pattern[1] if pattern else parameter.numel())
            order = torch.rand(groups.shape, generator=generator).argsort(1)
            groups.masked_fill_(order < groups.shape[1] // 2, 0)
    return model


def make_experts() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4}
    config = AutoConfig.for_model("qwen3_moe", **sizes, **counts, head_dim=8, num_experts_per_tok=2)
    return AutoModelForCausalLM.from_config(config)


def make_tokenizer() -> PreTrainedTokenizerBase:
    """One token per letter."""
    words = WordLevel(
        {"<unk>": 0} | {letter: 1 + index for index, letter in enumerate(string.ascii_lowercase)}, "<unk>"
    )
    backend = Tokenizer(words)
    backend.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def headers_of(folder: Path) -> dict[str, list[int]]:
    shapes = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes.update({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
    return shapes


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    make_sparse(make_model()).bfloat16().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def stored(dense: Path) -> Path:
    compress(dense, dense.with_name("stored"))
    return dense.with_name("stored")


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
@pytest.mark.parametrize("make", [make_model, lambda: make_model("gpt2"), make_experts])
def test_compressed_and_decompressed_folder_is_the_dense_folder_byte_for_byte(
    make: Callable[[], PreTrainedModel], shard: str, tmp_path: Path
) -> None:
    make_sparse(make()).bfloat16().save_pretrained(tmp_path / "dense", max_shard_size=shard)
    compress(tmp_path / "dense", tmp_path / "stored")
    decompress(tmp_path / "stored", tmp_path / "again")
    dense, again = files_of(tmp_path / "dense"), files_of(tmp_path / "again")
    assert sorted(dense) == sorted(again)
    for name in dense:
        if name.endswith(".safetensors"):
            one, other = load_file(tmp_path / "dense" / name), load_file(tmp_path / "again" / name)
            assert all(torch.equal(one[key], other[key]) for key in one | other)
        else:
            assert json.loads(dense[name]) == json.loads(again[name])
    assert len([name for name in dense if name.endswith(".safetensors")]) > (1 if shard == "20KB" else 0)


def test_sharded_folder_has_an_index_that_names_every_stored_tensor(tmp_path: Path) -> None:
    save_pretrained_compressed(make_sparse(make_model()), tmp_path / "stored", max_shard_size="20KB")
    index = json.loads((tmp_path / "stored" / INDEX).read_text())
    assert set(index["weight_map"]) == set(headers_of(tmp_path / "stored"))
    assert WEIGHT + CODE in index["weight_map"]
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for path in (tmp_path / "stored").glob("*.safetensors") for tensor in load_file(path).values()
    )
    assert json.loads((tmp_path / "stored" / "config.json").read_text())["quantization_config"]["sharded"] is True


def test_only_matrices_that_gain_are_coded_and_experts_one_by_one(tmp_path: Path) -> None:
    save_pretrained_compressed(make_sparse(make_experts()), tmp_path / "stored")
    shapes = headers_of(tmp_path / "stored")
    coded = {name.removesuffix(FORM) for name in shapes if name.endswith(FORM)}
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in coded
    assert "model.layers.0.self_attn.q_proj.weight" in coded
    assert not coded & {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    assert shapes["model.embed_tokens.weight"] == [64, 32]
    # A reader that ignores codes finds a shape that fits no parameter.
    assert all(len(shapes[name]) == 1 for name in coded)


@pytest.mark.parametrize(("pattern", "share"), [(None, 9 / 16), ((2, 4), 8.75 / 16)])
def test_coded_matrices_take_their_share_of_the_dense_size(
    pattern: tuple[int, int] | None, share: float, tmp_path: Path
) -> None:
    save_pretrained_compressed(make_sparse(make_model(), pattern).bfloat16(), tmp_path / "stored")
    tensors = load_file(tmp_path / "stored" / WEIGHTS)
    assert (tensors[WEIGHT].nbytes + tensors[WEIGHT + CODE].nbytes - 4) / (48 * 32 * 2) == share


def test_tokenizer_and_other_files_are_kept_and_other_weight_formats_are_not(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_sparse(make_model())
    save_pretrained_compressed(model, tmp_path / "stored", tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "stored").get_vocab() == tokenizer.get_vocab()
    dense = tmp_path / "dense"
    model.save_pretrained(dense)
    (dense / "pytorch_model.bin").write_bytes(b"pickle")
    (dense / "README.md").write_text("card")
    (dense / "2_Dense").mkdir()
    save_file({"weight": torch.ones(2)}, dense / "2_Dense" / "model.safetensors")
    compress(dense, tmp_path / "copy")
    names = set(files_of(tmp_path / "copy"))
    assert {"README.md", "2_Dense/model.safetensors", WEIGHTS, "config.json"} <= names
    assert not names & {"pytorch_model.bin", "model.safetensors"}


def test_saving_changes_neither_the_model_nor_its_config(tmp_path: Path) -> None:
    model = make_sparse(make_model())
    model.config.mwanda_config = {"schema": 1}
    before = state_of(model)
    save_pretrained_compressed(model, tmp_path / "stored")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")
    assert json.loads((tmp_path / "stored" / "config.json").read_text())["mwanda_config"] == {"schema": 1}


@pytest.mark.parametrize("convert", [compress, decompress])
def test_failure_leaves_nothing_behind(
    convert: Callable[[Path, Path], None], dense: Path, stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    before = files_of(tmp_path)
    monkeypatch.setattr(SafetensorsWriter, "_assemble", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(dense if convert is compress else stored, tmp_path / "new")
    assert files_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "stored"]


def test_folder_that_holds_something_is_not_touched(dense: Path, stored: Path) -> None:
    before = files_of(stored)
    for write in (lambda: compress(dense, stored), lambda: save_pretrained_compressed(make_model(), stored)):
        with pytest.raises(FileExistsError, match="not empty"):
            write()
    assert files_of(stored) == before
    (stored.parent / "empty").mkdir()
    compress(dense, stored.parent / "empty")
    assert files_of(stored.parent / "empty") == before


@pytest.mark.parametrize("convert", [compress, decompress])
def test_output_inside_the_source_is_refused(
    convert: Callable[[Path, Path], None], dense: Path, stored: Path, tmp_path: Path
) -> None:
    source = dense if convert is compress else stored
    before = files_of(tmp_path)
    (tmp_path / "link").symlink_to(source, target_is_directory=True)
    for output in (source / "sub", source / "deep" / "sub", source / ".." / source.name / "sub", tmp_path / "link/sub"):
        with pytest.raises(ValueError, match=r"is in .*: name a folder outside it"):
            convert(source, output)
    assert files_of(tmp_path) == before


def test_pickle_checkpoint_is_refused(dense: Path) -> None:
    (dense / "model.safetensors").unlink()
    torch.save({}, dense / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"(?s)holds neither model\.safetensors.*never pickle"):
        compress(dense, dense.with_name("new"))


def test_checkpoints_of_the_wrong_kind_are_refused(dense: Path, stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already stored with 'mwanda-compressed'"):
        compress(stored, tmp_path / "new")
    with pytest.raises(ValueError, match="is not compressed"):
        decompress(dense, tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="snapshot_download"):
        compress("someone/model", tmp_path / "new")
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"]["format"] = 3
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layout 3.*install a newer"):
        decompress(stored, tmp_path / "new")


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "sub/model.safetensors", 3, None])
def test_index_that_points_elsewhere_is_refused(shard: Any, dense: Path) -> None:
    (dense / "model.safetensors").rename(dense / "model-00001-of-00001.safetensors")
    (dense / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ValueError, match=r"index\.json"):
        compress(dense, dense.with_name("new"))


def corrupt(stored: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(stored / WEIGHTS)
    change(tensors)
    save_file(tensors, stored / WEIGHTS, metadata={"format": "pt"})


DAMAGE: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a value is missing": lambda t: t.update({WEIGHT: t[WEIGHT][:-1].clone()}),
    "a value too many": lambda t: t.update({WEIGHT: torch.cat([t[WEIGHT], t[WEIGHT][:1]])}),
    "a bit is set": lambda t: t[WEIGHT + CODE].__setitem__(0, t[WEIGHT + CODE][0] ^ 1),
    "the code is short": lambda t: t.update({WEIGHT + CODE: t[WEIGHT + CODE][:-1].clone()}),
    "the code has another type": lambda t: t.update({WEIGHT + CODE: t[WEIGHT + CODE].int()}),
    "the values are integers": lambda t: t.update({WEIGHT: t[WEIGHT].view(torch.int16)}),
    "the values have two dimensions": lambda t: t.update({WEIGHT: t[WEIGHT].view(-1, 2)}),
    "the shape is huge": lambda t: t.update({WEIGHT + FORM: torch.tensor([0, 0, 2**62, 2**62])}),
    "the shape is negative": lambda t: t.update({WEIGHT + FORM: torch.tensor([0, 0, -48, -32])}),
    "the form is a number": lambda t: t.update({WEIGHT + FORM: torch.tensor(48)}),
    "the form is not whole": lambda t: t.update({WEIGHT + FORM: t[WEIGHT + FORM].float()}),
    "the form is long": lambda t: t.update({WEIGHT + FORM: torch.ones(10**4, dtype=torch.int64)}),
    "the form is a pattern": lambda t: t.update({WEIGHT + FORM: torch.tensor([2, 4, 48, 32])}),
    "the form is missing": lambda t: t.pop(WEIGHT + FORM),
    "the code is missing": lambda t: t.pop(WEIGHT + CODE),
    "the values are missing": lambda t: t.pop(WEIGHT),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_error_that_names_the_tensor_for_decompress_and_from_pretrained(damage: str, stored: Path) -> None:
    corrupt(stored, DAMAGE[damage])
    with pytest.raises(ValueError, match=f"'{WEIGHT}' cannot be decoded"):
        decompress(stored, stored.with_name("new"))
    with pytest.raises(ValueError, match=f"'{WEIGHT}' cannot be decoded"):
        AutoModelForCausalLM.from_pretrained(stored)
    assert not stored.with_name("new").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", WEIGHT])
def test_tensor_that_is_missing_altogether_is_named(name: str, stored: Path) -> None:
    assert json.loads((stored / "config.json").read_text())["quantization_config"]["tensors"] > 10
    corrupt(stored, lambda tensors: [tensors.pop(part, None) for part in (name, name + CODE, name + FORM)])
    with pytest.raises(ValueError, match=rf"holds \d+ tensors, but its config\.json says .*'{name}'"):
        AutoModelForCausalLM.from_pretrained(stored)
    with pytest.raises(ValueError, match=r"holds \d+ tensors, but its config\.json says \d+"):
        decompress(stored, stored.with_name("new"))
    assert not stored.with_name("new").exists()


def test_many_missing_tensors_are_not_all_named(stored: Path) -> None:
    corrupt(stored, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers." in name])
    with pytest.raises(ValueError, match=r"Nothing is stored for ('[\w.]+', ){7}'[\w.]+' and \d+ more\.$"):
        AutoModelForCausalLM.from_pretrained(stored)


def test_checkpoint_that_does_not_count_its_tensors_loads(stored: Path, tmp_path: Path) -> None:
    config = json.loads((stored / "config.json").read_text())
    del config["quantization_config"]["tensors"]
    (stored / "config.json").write_text(json.dumps(config))
    AutoModelForCausalLM.from_pretrained(stored)
    decompress(stored, tmp_path / "new")


@pytest.mark.parametrize("change", [lambda raw: raw[:-100], lambda raw: b"garbage" * 100, lambda raw: b""])
def test_file_that_is_no_safetensors_is_named(change: Callable[[bytes], bytes], stored: Path) -> None:
    (stored / WEIGHTS).write_bytes(change((stored / WEIGHTS).read_bytes()))
    with pytest.raises(ValueError, match=r"model\.mwanda\.safetensors cannot be read as safetensors"):
        AutoModelForCausalLM.from_pretrained(stored)


def test_tensor_larger_than_the_models_own_is_refused_before_it_is_decoded(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_mwanda.storage.coded.decode", lambda *_: pytest.fail("decoded"))
    large = {
        WEIGHT: torch.empty(0, dtype=torch.bfloat16),
        WEIGHT + CODE: torch.zeros(2 * 48 * 32 // 8 + 4, dtype=torch.uint8),
        WEIGHT + FORM: torch.tensor([0, 0, 96, 32]),
    }
    corrupt(stored, lambda tensors: tensors.update(large))
    with pytest.raises(ValueError, match=rf"'{WEIGHT}'.*\(96, 32\).*room for 1536"):
        AutoModelForCausalLM.from_pretrained(stored)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4))
def test_file_with_changed_bytes_is_decoded_or_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    weight = torch.arange(1024.0).view(32, 32)
    weight.view(-1)[::2] = 0
    parts = compressed.stored_parts("w", weight)
    assert len(parts) == 3
    path = tmp_path / "w.safetensors"
    save_file(parts, path)
    raw = bytearray(path.read_bytes())
    for position, byte in changes:
        raw[position % len(raw)] = byte
    path.write_bytes(raw)
    try:
        compressed._convert_file(path, tmp_path / "out.safetensors", lambda name, tensor: {name: tensor})
    except ValueError:
        return
    assert all(tensor.numel() <= 8 * len(raw) for tensor in load_file(tmp_path / "out.safetensors").values())


def test_view_reads_coded_tensors_of_tensors_and_of_slices(stored: Path) -> None:
    in_memory = decoded_view(load_file(stored / WEIGHTS))
    with safe_open(stored / WEIGHTS, framework="pt") as file:
        lazy = decoded_view({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118
        assert isinstance(lazy[WEIGHT], CodedTensor)
        assert lazy[WEIGHT].get_shape() == [48, 32]
        assert lazy[WEIGHT].get_dtype() == in_memory[WEIGHT].get_dtype() == "BF16"
        assert torch.equal(lazy[WEIGHT][...], in_memory[WEIGHT][...])
        assert torch.equal(lazy[WEIGHT][3:5, 1], in_memory[WEIGHT][...][3:5, 1])
    assert not any(name.endswith((CODE, FORM)) for name in in_memory)


def test_writer_aligns_every_tensor_and_writes_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "long": torch.arange(5),
        "half": torch.randn(3, 7).half(),
        "single": torch.tensor(1.5),
        "flags": torch.tensor([True, False, True]),
        "float8": torch.randn(3, 3).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 6).T,
    }
    with SafetensorsWriter(tmp_path / "x.safetensors", {"format": "pt"}) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    assert writer.size == sum(tensor.nbytes for tensor in tensors.values())
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert read[name].data_ptr() % tensor.element_size() == 0
        assert torch.equal(read[name].float(), tensor.float())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_links_out_of_a_folder_are_not_copied_but_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, secret = tmp_path / "source", tmp_path / "secret"
    make_sparse(make_model()).save_pretrained(source)
    (secret / "deeper").mkdir(parents=True)
    (secret / "key").write_text("secret")
    (source / "sub").mkdir()
    (source / "sub" / "own.txt").write_text("own")
    for name, target in {
        "notes.txt": secret / "key",
        "folder": secret,
        "sub/deep": secret,
        "endless": "/dev/zero",
        "loop": source / "loop",
        "lost": tmp_path / "nothing",
        "inside.txt": source / "sub" / "own.txt",
    }.items():
        os.symlink(target, source / name)
    os.mkfifo(source / "pipe")
    compress(source, tmp_path / "small")
    decompress(tmp_path / "small", tmp_path / "plain")
    for folder in ("small", "plain"):
        found = {path.relative_to(tmp_path / folder).as_posix() for path in (tmp_path / folder).rglob("*")}
        assert {name for name in found if "model" not in name} == {
            "config.json",
            "generation_config.json",
            "inside.txt",
            "sub",
            "sub/own.txt",
        }
    for name in ("notes.txt", "folder", "sub/deep", "endless", "loop", "lost", "pipe"):
        assert name in caplog.text


def test_links_of_a_hub_cache_are_followed_into_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--me--tiny" / "snapshots" / "abc", tmp_path / "models--me--tiny" / "blobs"
    make_sparse(make_model()).save_pretrained(snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        shutil.move(path, blobs / str(number))
        os.symlink(f"../../blobs/{number}", path)
    compress(snapshot, tmp_path / "small")
    assert (tmp_path / "small" / "generation_config.json").is_file()
    assert not (tmp_path / "small" / "generation_config.json").is_symlink()


@pytest.mark.parametrize("pattern", [None, (2, 4), (2, 8), (1, 16)])
def test_every_flipped_bit_of_a_coded_tensor_is_found(pattern: tuple[int, int] | None) -> None:
    weight = torch.arange(1, 513, dtype=torch.float32).view(16, 32)
    kept, run = pattern or (256, 512)
    weight.view(-1, run)[:, kept:] = 0
    parts = compressed.stored_parts("w", weight)
    assert parts["w" + FORM].tolist()[:2] == list(pattern or (0, 0))
    assert torch.equal(decoded_view(parts)["w"][...], weight)
    for part in ("w", "w" + CODE):
        data = parts[part].view(torch.uint8)
        for byte in range(len(data)):
            data[byte] ^= 1 << byte % 8
            with pytest.raises(ValueError, match="'w' cannot be decoded"):
                decoded_view(parts)["w"][...]
            data[byte] ^= 1 << byte % 8


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    dense, stored = tmp_path / "dense", tmp_path / "stored"
    model = make_sparse(make_model())
    model.save_pretrained(dense, max_shard_size="20KB")
    save_pretrained_compressed(model, stored, max_shard_size="20KB")
    for folder, convert in ((dense, compress), (stored, decompress)):
        first, second, *_ = sorted(folder.glob("*.safetensors"))
        tensors = load_file(first)
        name = next(name for name in tensors if not name.endswith((CODE, FORM)))
        save_file(load_file(second) | {name: tensors[name] + 1}, second, {"format": "pt"})
        with pytest.raises(ValueError, match=f"'{name}' is both in .*{first.name} and in .*{second.name}"):
            convert(folder, tmp_path / "new")
    with pytest.raises(ValueError, match=f"'{name}' is both in"):
        AutoModelForCausalLM.from_pretrained(stored)


def test_room_for_the_dense_weights_is_checked_before_they_are_decoded(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = {WEIGHT: torch.empty(0), WEIGHT + CODE: torch.zeros(2**20 + 4, dtype=torch.uint8)}
    corrupt(stored, lambda tensors: tensors.update({**huge, WEIGHT + FORM: torch.tensor([0, 0, 2**10, 2**13])}))
    monkeypatch.setattr("optimum_mwanda.storage.coded.decode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**24))
    with pytest.raises(OSError, match=r"the dense weights need 33,\d{3},\d{3} bytes, but only 16,777,216 are free"):
        decompress(stored, stored.with_name("new"))
