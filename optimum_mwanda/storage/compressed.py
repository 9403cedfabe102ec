"""Compressed checkpoints: folders that store sparse weights by their non-zeros.

The files have names that transformers does not look for on its own, so without this package a load fails.
"""

import errno
import fnmatch
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..modeling.tensor_file import DTYPES
from ..utils import abridged
from .coded import (
    COMPRESSED,
    FORMAT,
    check_count,
    check_format,
    decoded_names,
    decoded_view,
    names_in,
    stored_parts,
)
from .files import (
    COMPRESSED_INDEX_FILE,
    COMPRESSED_WEIGHTS_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    opened,
    own_file,
    read_config,
    read_index_metadata,
    weight_files,
)
from .outputs import new_folder
from .read_back import check_copied, save_checked
from .writer import SafetensorsWriter

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NOT_COPIED = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "consolidated*",
    "tf_model.h5",
    "flax_model.msgpack",
    ".git",
    ".cache",
)


def save_pretrained_compressed(
    model: "PreTrainedModel",
    save_directory: str | os.PathLike[str],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Saves a pruned model by its non-zeros; `from_pretrained` reads it once this package has been imported.

    On the way, the dense checkpoint is written to disk beside `save_directory`.

    Args:
        model: The model; it is not changed.
        save_directory: Folder to create; it must not exist or must be empty. It appears when it is complete.
        tokenizer: Saved with the model if given.
        max_shard_size: Largest dense size of one file. None: as for `save_checked`.

    Raises:
        FileExistsError: If `save_directory` holds something.
        ValueError: If the model is quantized, or what was written is not the model.
    """
    with new_folder(save_directory) as folder:
        dense = folder.with_name("dense")
        save_checked(model, dense, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(dense)
        _compress(dense, folder)


def compress(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Writes a compressed copy of a dense checkpoint, one tensor at a time.

    Args:
        path: Folder with `config.json` and safetensors weights; other files are copied.
        output: Folder to create; it must not exist or must be empty. It appears when it is complete.

    Raises:
        FileExistsError: If `output` holds something.
        FileNotFoundError: If `path` is not a folder, or lacks config or safetensors weights.
        ValueError: If the model is already quantized or compressed, a file cannot be read, or `output` is in `path`.
    """
    source = _existing(path)
    _check_outside(source, output)
    with new_folder(output) as folder:
        _compress(source, folder)


def decompress(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Writes a dense copy of a compressed checkpoint, one tensor at a time; every tool can read it.

    Args:
        path: Folder of a compressed checkpoint.
        output: Folder to create; it must not exist or must be empty. It appears when it is complete.

    Raises:
        FileExistsError: If `output` holds something.
        FileNotFoundError: If `path` is not a folder, or lacks config or weights.
        ValueError: If the checkpoint is not compressed, a file is damaged, a tensor is missing, or `output` is in
            `path`.
    """
    source = _existing(path)
    _check_outside(source, output)
    config = read_config(source)
    storage = config.pop("quantization_config", None)
    if not isinstance(storage, dict) or storage.get("quant_method") != COMPRESSED:
        raise ValueError(f"{source} is not compressed: its config.json does not name {COMPRESSED!r}.")
    check_format(storage.get("format"))
    with new_folder(output) as folder:
        _copy_others(source, folder)
        _, names = _convert(source, folder, decompressing=True, parts=lambda name, tensor: {name: tensor})
        check_count(storage.get("tensors"), names)
        _write_json(folder / "config.json", config)


def _compress(source: Path, folder: Path) -> None:
    config = read_config(source)
    if (storage := config.get("quantization_config")) is not None:
        method = storage.get("quant_method") if isinstance(storage, dict) else storage
        raise ValueError(f"{source} is already stored with {method!r}: only dense checkpoints can be compressed.")
    _copy_others(source, folder)
    sharded, names = _convert(source, folder, decompressing=False, parts=stored_parts)
    config["quantization_config"] = {
        "quant_method": COMPRESSED,
        "format": FORMAT,
        "sharded": sharded,
        "tensors": len(decoded_names(names)),
    }
    _write_json(folder / "config.json", config)


def _convert(
    source: Path, folder: Path, decompressing: bool, parts: Callable[[str, Tensor], Mapping[str, Tensor]]
) -> tuple[bool, list[str]]:
    """Converts every weight file.

    Args:
        source: Folder to read.
        folder: Folder to write.
        decompressing: Whether `source` is compressed and `folder` dense, or the other way round.
        parts: Gives what to store of one tensor.

    Returns:
        Whether there are several files, and the names of all tensors in them now.
    """
    dense, coded = (WEIGHTS_FILE, INDEX_FILE), (COMPRESSED_WEIGHTS_FILE, COMPRESSED_INDEX_FILE)
    old, new = (coded, dense) if decompressing else (dense, coded)
    paths = weight_files(source, compressed=decompressing)
    names_in(paths)
    if decompressing:
        _check_room(paths, folder)
    if [path.name for path in paths] == [old[0]]:
        return False, _convert_file(paths[0], folder / new[0], parts)[0]
    weight_map: dict[str, str] = {}
    total = 0
    for path in paths:
        target = path.name.removesuffix(old[0].removeprefix("model")) + new[0].removeprefix("model")
        stored, size = _convert_file(path, folder / target, parts)
        weight_map.update(dict.fromkeys(stored, target))
        total += size
    metadata = dict(sorted({**read_index_metadata(source, old[1]), "total_size": total}.items()))
    _write_json(folder / new[1], {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
    return True, list(weight_map)


def _check_room(paths: Sequence[Path], folder: Path) -> None:
    """Checks before anything is decoded that the disk holds it: a small file can claim to be a very large tensor."""
    needed = 0
    for path in paths:
        with opened(path) as file:
            tensors = decoded_view({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118
            for name, tensor in tensors.items():
                if tensor.get_dtype() in DTYPES:
                    needed += math.prod(tensor.get_shape()) * DTYPES[tensor.get_dtype()].itemsize
                else:
                    raise _unknown_type(name, path, tensor)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"the dense weights need {needed:,} bytes, but only {free:,} are free")


def _unknown_type(name: str, path: Path, tensor: Any) -> ValueError:
    return ValueError(f"{name!r} in {path} has type {tensor.get_dtype()}: only {', '.join(DTYPES)} can be converted.")


def _convert_file(
    source: Path, target: Path, parts: Callable[[str, Tensor], Mapping[str, Tensor]]
) -> tuple[list[str], int]:
    """Converts one file, and returns the names and the bytes of the tensors in it now."""
    names: list[str] = []
    with opened(source) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in slices.items():
            if tensor.get_dtype() not in DTYPES:
                raise _unknown_type(name, source, tensor)
        view = decoded_view(slices)
        with SafetensorsWriter(target, file.metadata() or {"format": "pt"}) as writer:
            for name, tensor in view.items():
                for part, data in parts(name, tensor[...]).items():
                    writer.add(part, data)
                    names.append(part)
        check_copied(view, target)
    return names, writer.size


def _existing(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"There is no folder {os.fspath(path)!r}. Download a repository first: "
            "huggingface_hub.snapshot_download(id) returns its folder."
        )
    return Path(path)


def _check_outside(source: Path, output: str | os.PathLike[str]) -> None:
    if source.resolve() in Path(output).resolve().parents:
        raise ValueError(
            f"{os.fspath(output)!r} is in {os.fspath(source)!r}, whose files are copied: name a folder outside it."
        )


def _copy_others(source: Path, folder: Path) -> None:
    """Copies the files of a folder, except weights; weights in subfolders belong to other modules and are copied.

    Links are followed as `own_file` says, because those of a foreign folder may lead to files that nobody meant to
    publish. What is left out is logged.
    """
    left_out = []
    for place, folders, files in os.walk(source):
        names = [*files, *(name for name in folders if os.path.islink(os.path.join(place, name)))]
        if Path(place) == source:
            folders[:], names = (
                [name for name in group if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _NOT_COPIED)]
                for group in (folders, names)
            )
        for name in sorted(names):
            path = Path(place, name)
            if own_file(path, source):
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            else:
                left_out.append(str(path.relative_to(source)))
    if left_out:
        logger.warning(
            "Not copied, because they are links out of the folder or no ordinary files: %s. Copy what you need.",
            abridged(left_out),
        )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
