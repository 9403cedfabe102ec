import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.record import matrices
from optimum_mwanda.record.parts import RecordedMatrix
from optimum_mwanda.record.tails import Tails
from optimum_mwanda.record.verification import (
    ChangedMatrix,
    match_names,
    sparsity_map,
    sparsity_record,
    verify_sparsity,
)
from optimum_mwanda.storage import files
from optimum_mwanda.storage.compressed import save_pretrained_compressed
from tests.conftest import make_model
from tests.storage.families import make_family

UP = "model.layers.1.mlp.up_proj"
DOWN = "model.layers.2.mlp.down_proj"


def pruned(family: str = "llama", **changes: Any) -> PreTrainedModel:
    config = MWandaConfig(**{"criterion": "magnitude", "group": "matrix", "allocation": "uniform", **changes})
    return MWandaPruner(config, progress=False).apply(make_model(family))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pruned().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Any) -> None:
    """Edits the tensors of a saved model in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def rewrite_config(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("save", [{}, {"max_shard_size": "20kB"}])
def test_a_pruned_model_is_verified_in_memory_and_on_disk(family: str, save: dict[str, Any], tmp_path: Path) -> None:
    model = pruned(family, sparsity=0.3)
    model.save_pretrained(tmp_path, **save)
    for place in (model, tmp_path, str(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        result = verify_sparsity(place)
        assert result.ok
        assert result.matrices == {"llama": 21, "qwen3": 21, "gpt2": 12}[family]
        assert str(result) == f"All {result.matrices} matrices hold as many zeros as the sparsity record says."
        shares = sparsity_map(place)
        assert list(shares.values()) == pytest.approx([0.3] * result.matrices, abs=1e-3)
        assert set(shares) <= {name for name, _ in model.named_modules()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_heads_are_matched_although_prefixes_differ(family: str, tmp_path: Path) -> None:
    pruned(family).save_pretrained(tmp_path / "lm")
    for name, head in (("base", AutoModel), ("classifier", AutoModelForSequenceClassification)):
        model = head.from_pretrained(tmp_path / "lm")
        model.save_pretrained(tmp_path / name)
        for place in (model, tmp_path / name):
            assert verify_sparsity(place).ok
            assert list(sparsity_map(place)) == list(sparsity_map(tmp_path / "lm"))


def test_a_wrapped_model_is_verified() -> None:
    model = pruned()
    wrapper = torch.nn.Module()
    wrapper.module, wrapper.config = model, model.config
    assert verify_sparsity(wrapper).ok
    with torch.no_grad():
        model.get_submodule(UP).weight.fill_(1)
    assert [matrix.name for matrix in verify_sparsity(wrapper).lost] == [UP]


def test_casting_keeps_the_zeros() -> None:
    assert verify_sparsity(pruned().bfloat16()).ok


@pytest.mark.parametrize(("value", "is_told"), [(1.0, True), (0.0, False)])
def test_what_keeps_zeros_is_told_where_they_are_lost(value: float, is_told: bool) -> None:
    model = pruned()
    with torch.no_grad():
        model.get_submodule(UP).weight.fill_(value)
    text = str(verify_sparsity(model))
    assert ("keep_masks" in text) is is_told
    assert ("merge an adapter with merge_preserving_masks(peft_model) instead" in text) is is_told


def test_every_matrix_that_lost_or_gained_zeros_is_named(tmp_path: Path) -> None:
    model = pruned()
    with torch.no_grad():
        for name in (UP, "model.layers.0.self_attn.q_proj"):
            weight = model.get_submodule(name).weight
            weight[weight == 0] += 1e-3
        weight = model.get_submodule(DOWN).weight
        weight[torch.nonzero(weight)[0][0], torch.nonzero(weight)[0][1]] = -0.0
    model.save_pretrained(tmp_path)
    for place in (model, tmp_path):
        result = verify_sparsity(place)
        assert not result.ok
        assert result.lost == (ChangedMatrix("model.layers.0.self_attn.q_proj", 512, 0), ChangedMatrix(UP, 768, 0))
        assert result.gained == (ChangedMatrix(DOWN, 768, 769),)
        assert result.missing == result.reshaped == ()
        assert "3 of 21 matrices differ" in str(result)
        assert all(matrix.name in str(result) for matrix in (*result.lost, *result.gained))
        shares = sparsity_map(place)
        assert shares[UP] == 0
        assert shares[DOWN] == 769 / 1536
        assert shares["model.layers.0.mlp.up_proj"] == 0.5


def test_training_without_masks_is_found() -> None:
    model = pruned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert len(verify_sparsity(model).lost) == 21


def test_missing_and_reshaped_matrices_are_named(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{UP}.weight"]
        tensors[f"{DOWN}.weight"] = torch.zeros(3, 3)

    rewrite(folder, change)
    result = verify_sparsity(folder)
    assert (result.missing, result.reshaped, result.lost, result.gained) == ((UP,), (DOWN,), (), ())
    assert UP in str(result)
    assert DOWN in str(result)
    assert UP not in sparsity_map(folder)


def test_a_tampered_record_is_found(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        record = config["mwanda_config"]
        record["matrices"]["mlp.up_proj"]["zeros"][1] = 1536
        total = sum(sum(entry["zeros"]) for entry in record["matrices"].values())
        size = sum(3 * entry["shape"][0] * entry["shape"][1] for entry in record["matrices"].values())
        block = sum(entry["zeros"][1] for entry in record["matrices"].values())
        record["achieved_sparsity"] = total / size
        record["blocks"]["sparsity"][1] = round(3 * block / size, 6)

    rewrite_config(folder, change)
    assert verify_sparsity(folder).lost == (ChangedMatrix(UP, 1536, 768),)


def test_a_model_without_record_is_mapped_but_not_verified(folder: Path) -> None:
    model = pruned()
    expected = sparsity_map(model)
    del model.config.mwanda_config
    assert sparsity_record(model) is None
    assert sparsity_map(model) == expected
    with pytest.raises(ValueError, match="LlamaForCausalLM has no sparsity record"):
        verify_sparsity(model)
    rewrite_config(folder, lambda config: config.pop("mwanda_config"))
    assert sparsity_record(folder) is None
    for read in (sparsity_map, verify_sparsity):
        with pytest.raises(ValueError, match=r"no sparsity record.*Load the model"):
            read(folder)


def test_a_model_without_values_is_refused() -> None:
    model = pruned()
    record = sparsity_record(model)
    model.get_submodule(UP).to("meta")
    assert sparsity_record(model) == record
    for read in (verify_sparsity, sparsity_map):
        with pytest.raises(ValueError, match=f"'{UP}' has no values.*load the whole model into memory"):
            read(model)
    del model.config.mwanda_config
    with pytest.raises(ValueError, match=f"'{UP}' has no values.*load the whole model into memory"):
        sparsity_map(model)


def cached(folder: Path, cache: Path, *names: str) -> None:
    """Lays a model out as huggingface_hub caches it."""
    snapshot = cache / "models--org--pruned" / "snapshots" / ("0" * 40)
    (cache / "models--org--pruned" / "refs").mkdir(parents=True)
    (cache / "models--org--pruned" / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    for name in names:
        shutil.copy(folder / name, snapshot)


def test_a_repository_is_read_through_the_hub_library(folder: Path, tmp_path: Path) -> None:
    cached(folder, tmp_path / "cache", "config.json", "model.safetensors")
    assert sparsity_record("org/pruned", cache_dir=tmp_path / "cache") == sparsity_record(folder)
    assert sparsity_map("org/pruned", cache_dir=tmp_path / "cache") == sparsity_map(folder)
    assert verify_sparsity("org/pruned", cache_dir=tmp_path / "cache").ok


def test_a_mixture_in_a_repository_is_verified(tmp_path: Path) -> None:
    config = MWandaConfig(criterion="magnitude", allocation="uniform")
    model = MWandaPruner(config, progress=False).apply(make_family("mixtral"))
    model.save_pretrained(tmp_path / "model", max_shard_size="20kB")
    names = [path.name for path in (tmp_path / "model").glob("model*")]
    cached(tmp_path / "model", tmp_path / "cache", "config.json", *names)
    assert verify_sparsity("org/pruned", cache_dir=tmp_path / "cache").ok
    assert sparsity_map("org/pruned", cache_dir=tmp_path / "cache") == sparsity_map(model)


def test_only_config_and_safetensors_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def one(repo: str, name: str, **kwargs: Any) -> str:
        asked.append((repo, name, kwargs))
        return str(folder / name)

    def several(repo: str, allow_patterns: list[str], **kwargs: Any) -> str:
        asked.append((repo, tuple(allow_patterns), kwargs))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", one)
    monkeypatch.setattr("huggingface_hub.snapshot_download", several)
    sparsity_record("org/pruned", revision="v1")
    verify_sparsity("org/pruned", token="secret")
    patterns = (
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-*.safetensors",
        "model.mwanda.safetensors",
        "model.mwanda.safetensors.index.json",
    )
    assert asked == [
        ("org/pruned", "config.json", {"revision": "v1"}),
        ("org/pruned", patterns, {"token": "secret"}),
    ]


@pytest.mark.parametrize("place", ["./nowhere", "/nowhere/at/all", "runs/1/model", "../x", Path("nowhere"), ""])
def test_a_missing_folder_is_never_looked_up_on_the_hub(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", pytest.fail)
    if place == "":
        monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(FileNotFoundError, match=r"no folder|holds no config.json"):
        sparsity_record(place)


def test_pickle_checkpoints_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="Only safetensors are read, never pickle"):
        verify_sparsity(folder)


def test_a_large_config_is_refused_before_it_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.json, "loads", pytest.fail)
    with (folder / "config.json").open("a") as file:
        file.write(" " * files.MAX_CONFIG_BYTES)
    with pytest.raises(ValueError, match="more than 16,777,216 are not read"):
        sparsity_record(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[" * 200_000, "not valid JSON"), ("\x00", "not valid JSON"), ("[]", "one JSON object"), ("", "not valid JSON")],
)
def test_a_config_that_is_no_object_is_refused(content: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        sparsity_record(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "weights.bin", 7, None])
def test_an_index_cannot_name_files_elsewhere(name: Any, folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"{UP}.weight": name}}))
    with pytest.raises(ValueError, match=r"not a \.safetensors file in the same folder"):
        verify_sparsity(folder)


def test_a_missing_shard_and_a_broken_file_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        verify_sparsity(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {f"{UP}.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00002\.safetensors is missing"):
        verify_sparsity(folder)


def test_a_matrix_in_two_shards_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-1.safetensors")
    shutil.move(folder / "model.safetensors", folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="in two files"):
        verify_sparsity(folder)


def test_only_recorded_matrices_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def count(tensor: torch.Tensor) -> int:
        sizes.append(tuple(tensor.shape))
        return 0

    monkeypatch.setattr(matrices, "count_zeros", count)
    sparsity_map(folder)
    assert len(sizes) == 21
    assert (96, 32) not in sizes


def recorded(*names: tuple[str, str]) -> list[RecordedMatrix]:
    return [RecordedMatrix(f"{block}.{path}", block, (2, 2), 1) for block, path in names]


@pytest.mark.parametrize(
    ("existing", "found"),
    [
        (["model.layers.0.up", "draft.model.layers.0.up"], "model.layers.0.up"),
        (["layers.0.up", "vision.layers.10.up"], "layers.0.up"),
        (["module.model.layers.0.up"], "module.model.layers.0.up"),
        (["text.layers.0.up"], "text.layers.0.up"),
        (["a.model.layers.0.up", "b.layers.0.up"], "a.model.layers.0.up"),
        (["a.model.layers.0.up", "b.model.layers.0.up"], None),
        (["vision.layers.0.up", "text.model.x.layers.0.up"], "text.model.x.layers.0.up"),
        (["0.up", "model.blocks.0.up", "up"], None),
        ([], None),
    ],
)
def test_names_match_by_an_unambiguous_tail(existing: list[str], found: str | None) -> None:
    matched = match_names(recorded(("model.layers.0", "up")), existing)
    assert matched == ({} if found is None else {"model.layers.0.up": found})


def test_names_are_matched_in_the_order_of_the_record() -> None:
    """Processes that take the matrices in turn must agree on it."""
    names = recorded(*((f"model.layers.{index}", "up") for index in range(40)))
    existing = [name.name for name in names]
    assert list(match_names(names, existing)) == existing


def test_one_weight_never_stands_for_two_matrices() -> None:
    names = recorded(("encoder.layers.0", "up"), ("decoder.layers.0", "up"))
    assert match_names(names, ["layers.0.up"]) == {}
    assert match_names(names, ["decoder.layers.0.up"]) == {"decoder.layers.0.up": "decoder.layers.0.up"}


PARTS = st.lists(st.sampled_from("ab0"), min_size=1, max_size=4).map(".".join)


@given(st.sets(PARTS, max_size=12), PARTS, st.integers(0, 7))
def test_names_that_share_the_longest_tail_are_found(names: set[str], name: str, shortest: int) -> None:
    def shared(other: str) -> int:
        pairs = zip(reversed(name.split(".")), reversed(other.split(".")), strict=False)
        return len(".".join(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    names.discard(name)
    longest = max(map(shared, names), default=0)
    expected = [] if not longest or longest < shortest else sorted(x for x in names if shared(x) == longest)
    assert Tails(names).sharing_most(name, shortest) == expected


def test_many_long_names_are_matched_without_all_their_tails() -> None:
    """All tails of these names would be 10 GB."""
    long = ".".join("x" * 500)
    existing = [f"model.{long}.layers.{index}.up" for index in range(20000)]
    names = recorded(*((f"{long}.layers.{index}", "up") for index in range(2000)))
    assert len(match_names(names, existing)) == 2000
    assert match_names(recorded(("layers.1", "x")), [f"{index}.layers.1.x" for index in range(20000)]) == {}


def test_compressed_folder_is_verified_without_the_model(tmp_path: Path) -> None:
    model = pruned()
    save_pretrained_compressed(model, tmp_path / "one")
    save_pretrained_compressed(model, tmp_path / "many", max_shard_size="20KB")
    for folder in (tmp_path / "one", tmp_path / "many"):
        assert verify_sparsity(folder).ok
        assert sparsity_map(folder) == pytest.approx(sparsity_map(model))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
