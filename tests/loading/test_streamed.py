"""Checkpoints are pruned on disk with the result that they get in memory, and a run that was stopped goes on."""

import errno
import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from filelock import FileLock
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from optimum_mwanda import MWandaConfig, MWandaPruner, check_saved, prune_checkpoint, search_plan
from optimum_mwanda.loading import streamed
from optimum_mwanda.loading.whole import load_whole
from optimum_mwanda.storage import outputs
from optimum_mwanda.storage.journal import Journal, OtherRunError
from optimum_mwanda.walking.replay import BlockCalls
from tests.conftest import SAMPLE_MODEL, make_model, make_rows
from tests.families.matrix import FAMILIES
from tests.forked import python
from tests.storage.quantized import make_fp8, make_mxfp4, needs_fp8

ROWS = make_rows("en sw", rows=4, length=16)
SMALL: dict[str, Any] = {"samples_per_language": 2, "sequence_length": 16, "batch_size": 2}
TEN = ("llama", "qwen3", "gemma3_text", "gpt2", "falcon", "mixtral", "qwen3_moe", "t5", "bert", "gemma3")
RENAMED = ("mixtral", "qwen3_moe", "bert", "gemma3")
"""Families whose weights have other names in files than in memory."""
SAVES_RENAMED = Version(transformers.__version__) >= Version("5.14")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    assert (tmp_path / "dense" / "model.safetensors.index.json").is_file()
    return tmp_path / "dense"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def loaded(folder: Path, like: PreTrainedModel) -> PreTrainedModel:
    model: PreTrainedModel = type(like).from_pretrained(folder, dtype="auto")
    return model


def stopped(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, after: int = 1, **settings: Any) -> Path:
    """A run that fails when some blocks are pruned; its progress."""
    put, pruned = Journal.put, []

    def failing(self: Journal, kind: str, *args: Any) -> Path:
        if kind == "pruned":
            if len(pruned) == after:
                raise OSError(errno.ENOSPC, "No space left on device")
            pruned.append(args)
        return put(self, kind, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", failing)
        with pytest.raises(OSError, match="No space left"):
            prune_checkpoint(source, target, MWandaConfig(**SMALL, **settings), ROWS, progress=False)
    assert not target.exists()
    return target.with_name(f".{target.name}.mwanda") / "progress"


@pytest.mark.parametrize("family", TEN)
def test_the_result_is_that_of_pruning_in_memory(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family].make().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "dense", max_shard_size="50KB")
    config = MWandaConfig(sequence_length=24, batch_size=2, refinement="swap")
    before = digests(tmp_path / "dense")
    if family in RENAMED and not SAVES_RENAMED:
        with pytest.raises(ValueError, match=r"install transformers 5\.14 or later"):
            prune_checkpoint(tmp_path / "dense", tmp_path / "out", config, FAMILIES[family].rows(), progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["dense"]
        return
    record = prune_checkpoint(tmp_path / "dense", tmp_path / "out", config, FAMILIES[family].rows(), progress=False)
    # transformers 5.0 keeps weights of T5 in float32 that later versions, and blocks on disk, have in bfloat16.
    plain = loaded(tmp_path / "dense", model)
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    MWandaPruner(config, progress=False).prune(plain, FAMILIES[family].rows())
    check_saved(plain, tmp_path / "out")
    assert loaded(tmp_path / "out", model).config.mwanda_config == plain.config.mwanda_config == record.to_dict()
    assert digests(tmp_path / "dense") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


@pytest.mark.parametrize("make", [pytest.param(make_fp8, marks=needs_fp8), make_mxfp4])
def test_quantized_checkpoints_are_dequantized_block_by_block(make: Callable[..., object], tmp_path: Path) -> None:
    make(tmp_path / "dense")
    config = MWandaConfig(**SMALL)
    prune_checkpoint(tmp_path / "dense", tmp_path / "out", config, ROWS, progress=False)
    plain, _ = load_whole(str(tmp_path / "dense"), AutoConfig.from_pretrained(tmp_path / "dense"))
    MWandaPruner(config, progress=False).prune(plain, ROWS)
    check_saved(plain, tmp_path / "out")


def test_models_that_this_transformers_could_not_save_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.13.1")
    rows, config = FAMILIES["mixtral"].rows(), MWandaConfig(**SMALL)
    FAMILIES["mixtral"].make().save_pretrained(tmp_path / "dense")
    with pytest.raises(
        ValueError, match=r"5\.13\.1 cannot save a MixtralForCausalLM.* 'model\.layers\.0\..*5\.14 or later"
    ):
        prune_checkpoint(tmp_path / "dense", tmp_path / "out", config, rows, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    FAMILIES["llama"].make().save_pretrained(tmp_path / "llama")
    prune_checkpoint(tmp_path / "llama", tmp_path / "out", config, rows, progress=False)
    FAMILIES["mixtral"].make().save_pretrained(tmp_path / "in_memory")


def test_compressed_results_and_settings_without_text(dense: Path, tmp_path: Path) -> None:
    config = MWandaConfig(criterion="magnitude", allocation="uniform")
    prune_checkpoint(dense, tmp_path / "out", config, compressed=True, progress=False)
    plain = loaded(dense, make_model())
    MWandaPruner(config, progress=False).prune(plain)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


def test_blocks_may_be_named(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, asked = streamed.find_stacks, []

    def noted(model: Any, path: Any = None) -> Any:
        asked.append(path)
        return find(model, path)

    monkeypatch.setattr(streamed, "find_stacks", noted)
    config = MWandaConfig(**SMALL, blocks="model.layers")
    prune_checkpoint(dense, tmp_path / "out", config, ROWS, progress=False)
    assert asked == [("model.layers",)]


def test_nothing_is_left_of_a_run_that_was_stopped_when_its_result_was_complete(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("not now")

    config = MWandaConfig(**SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "put", fail)
        with pytest.raises(outputs.CommitError, match="The result is complete in"):
            prune_checkpoint(dense, tmp_path / "out", config, ROWS, progress=False)
    assert not (tmp_path / ".out.mwanda" / "progress").exists()
    with pytest.raises(FileExistsError):  # the result of the run before is moved there first
        prune_checkpoint(dense, tmp_path / "out", config, ROWS, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_tokenizer_and_card_belong_to_the_result(tmp_path: Path) -> None:
    text = {"en": ["The house stands by the river."] * 9, "sw": ["Nyumba iko karibu na mto."] * 9}
    config = MWandaConfig(samples_per_language=1, sequence_length=16)
    prune_checkpoint(SAMPLE_MODEL, tmp_path / "out", config, text, progress=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "mwanda_config.json", "tokenizer.json"} <= names


def test_a_run_that_is_killed_twenty_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    config = make_model().config
    config.num_hidden_layers = 14
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    words = [python(), "-m", "tests.loading.killed", str(tmp_path)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    left = json.loads((tmp_path / "left.json").read_text())
    assert len(left) == 20, left
    assert len(set(left)) > 5, left  # it was killed in the beginning, in the middle and near the end
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "dense", "left.json", "whole"]


TRAINED = {"reconstruction": "block", "refinement": "block", "reconstruction_epochs": 1}


@pytest.mark.parametrize("settings", [{}, {"calibration": "sequential"}, {"refinement": "swap"}, TRAINED], ids=str)
def test_finished_blocks_are_not_pruned_again(
    settings: dict[str, Any], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MWandaConfig(**SMALL, **settings)
    prune_checkpoint(dense, tmp_path / "whole", config, ROWS, progress=False)
    progress = stopped(dense, tmp_path / "out", monkeypatch, after=2, **settings)
    parts = digests(progress)
    run, blocks = BlockCalls.run_to, set()

    def counted(self: BlockCalls, name: str, *args: Any) -> Iterator[int]:
        blocks.add(name)
        yield from run(self, name, *args)

    monkeypatch.setattr(BlockCalls, "run_to", counted)
    put, made = Journal.put, []
    monkeypatch.setattr(Journal, "put", lambda self, *args: made.append(args[:2]) or put(self, *args))
    prune_checkpoint(dense, tmp_path / "out", config, ROWS, progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert made == [("pruned", "model.layers.2")]
    assert blocks <= {"model.layers.2"}
    assert len([name for name in parts if name.startswith("pruned")]) == 2


@pytest.mark.parametrize(("after", "again"), [(1, (0, 1, 2)), (2, (2,))])
def test_blocks_that_are_trained_together_are_finished_together(
    after: int, again: tuple[int, ...], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only one of them is kept, what was known while it was made is not, so both are made again."""
    settings = {**TRAINED, "reconstruction_blocks": 2}
    prune_checkpoint(dense, tmp_path / "whole", MWandaConfig(**SMALL, **settings), ROWS, progress=False)
    stopped(dense, tmp_path / "out", monkeypatch, after=after, **settings)
    put, made = Journal.put, []
    monkeypatch.setattr(Journal, "put", lambda self, *args: made.append(args[1]) or put(self, *args))
    prune_checkpoint(dense, tmp_path / "out", MWandaConfig(**SMALL, **settings), ROWS, progress=False)
    assert sorted(made) == [f"model.layers.{number}" for number in again]
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("family", [name for name in ("t5", "gemma4_text") if FAMILIES[name].is_current])
def test_blocks_go_on_being_trained_where_blocks_give_each_other_more_than_hidden_states(
    family: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the decoder of an encoder-decoder, and behind keys that later blocks share."""
    FAMILIES[family].make().save_pretrained(tmp_path / "dense")
    rows, settings = (
        FAMILIES[family].rows(),
        {**SMALL, "sequence_length": 24, "reconstruction_blocks": together, **TRAINED},
    )
    prune_checkpoint(tmp_path / "dense", tmp_path / "whole", MWandaConfig(**settings), rows, progress=False)
    put, pruned = Journal.put, []

    def failing(self: Journal, kind: str, *args: Any) -> Path:
        pruned.extend([kind] if kind == "pruned" else [])
        if len(pruned) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, kind, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", failing)
        with pytest.raises(OSError, match="No space left"):
            prune_checkpoint(tmp_path / "dense", tmp_path / "out", MWandaConfig(**settings), rows, progress=False)
    prune_checkpoint(tmp_path / "dense", tmp_path / "out", MWandaConfig(**settings), rows, progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_another_run_is_refused_and_can_begin_anew(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = stopped(dense, tmp_path / "out", monkeypatch)
    parts = digests(progress)
    other = MWandaConfig(**SMALL, sparsity=0.7)
    with pytest.raises(OtherRunError, match=r"settings.sparsity was 0.5, and is 0.7.*--restart"):
        prune_checkpoint(dense, tmp_path / "out", other, ROWS, progress=False)
    with pytest.raises(OtherRunError, match=r"data.en was"):
        prune_checkpoint(dense, tmp_path / "out", MWandaConfig(**SMALL), ROWS[::-1], progress=False)
    make_model(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(OtherRunError, match=r"model was"):
        prune_checkpoint(tmp_path / "other", tmp_path / "out", MWandaConfig(**SMALL), ROWS, progress=False)
    assert digests(progress) == parts
    prune_checkpoint(dense, tmp_path / "out", other, ROWS, restart=True, progress=False)
    prune_checkpoint(dense, tmp_path / "fresh", other, ROWS, progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.parametrize("settings", [{"calibration": "sequential"}, TRAINED], ids=str)
def test_a_damaged_part_is_made_again(
    settings: dict[str, Any],
    dense: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = MWandaConfig(**SMALL, **settings)
    prune_checkpoint(dense, tmp_path / "whole", config, ROWS, progress=False)
    progress = stopped(dense, tmp_path / "out", monkeypatch, after=2, **settings)
    first = min(progress.glob("pruned-*.safetensors"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 16
    first.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        prune_checkpoint(dense, tmp_path / "out", config, ROWS, progress=False)
    assert any("is damaged, and is made again" in message for message in caplog.messages)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_two_processes_do_not_share_an_output(dense: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.mwanda").mkdir()
    with FileLock(tmp_path / ".out.mwanda" / "lock"), pytest.raises(OSError, match="another process is writing it"):
        prune_checkpoint(dense, tmp_path / "out", MWandaConfig(**SMALL), ROWS, progress=False)


def test_progress_is_not_deleted_by_other_commands(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum_mwanda.storage.outputs import new_folder

    progress = stopped(dense, tmp_path / "out", monkeypatch)
    with pytest.raises(OSError, match="interrupted run left its progress"), new_folder(tmp_path / "out"):
        pass
    assert len(list(progress.glob("*.safetensors"))) == 4


def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    size = sum(path.stat().st_size for path in dense.iterdir())
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        config = MWandaConfig(**SMALL)
        with pytest.raises(Exception, match="No space left"):
            prune_checkpoint(dense, place / "out", config, ROWS, progress=False)
        assert not (place / "out").exists()
        parts = digests(place / ".out.mwanda" / "progress")
        assert len(parts) > 3
        put, made = Journal.put, []
        monkeypatch.setattr(Journal, "put", lambda self, *args: made.append(args[:2]) or put(self, *args))
        subprocess.run(["mount", "-o", f"remount,size={9 * size}", place], check=True)
        prune_checkpoint(dense, place / "out", config, ROWS, progress=False)
        finished = [name for name in parts if name.endswith(".safetensors")]
        assert len(made) == 6 - len(finished)
        prune_checkpoint(dense, tmp_path / "out", config, ROWS, progress=False)
        assert digests(place / "out") == digests(tmp_path / "out")
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_plan_gives_each_matrix_its_sparsity(dense: Path, tmp_path: Path) -> None:
    config = MWandaConfig(**SMALL)
    plan = search_plan(loaded(dense, make_model()), ROWS, None, config, candidates=20, progress=False).plan
    record = prune_checkpoint(dense, tmp_path / "out", config, ROWS, plan=plan, progress=False)
    plain = loaded(dense, make_model())
    MWandaPruner(config, progress=False).prune(plain, ROWS, plan=plan)
    check_saved(plain, tmp_path / "out")
    assert record.plan == "search"
