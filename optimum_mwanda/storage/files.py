"""Reading the config and the safetensors files of a checkpoint, which are not trusted."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPRESSED_WEIGHTS_FILE = "model.mwanda.safetensors"
COMPRESSED_INDEX_FILE = "model.mwanda.safetensors.index.json"
DOWNLOADED = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    INDEX_FILE,
    "model-*.safetensors",
    COMPRESSED_WEIGHTS_FILE,
    COMPRESSED_INDEX_FILE,
)
MAX_CONFIG_BYTES = 16 * 2**20
MAX_INDEX_BYTES = 64 * 2**20
MAX_ENTRIES = 10_000
MAX_CHARACTERS = 4096
MAX_DEPTH = 8


def checkpoint_folder(name_or_path: str | os.PathLike[str], weights: bool, **hub_kwargs: Any) -> Path:
    """The folder of a checkpoint; for a repository, the config and, if needed, safetensors files are downloaded.

    Args:
        name_or_path: Folder, or repository id.
        weights: Whether the weights are needed.
        **hub_kwargs: Passed to huggingface_hub: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        FileNotFoundError: If a local path is not a folder.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    name_or_path = repository_id(name_or_path)
    from huggingface_hub import hf_hub_download, snapshot_download

    if weights:
        return Path(snapshot_download(name_or_path, allow_patterns=list(DOWNLOADED), **hub_kwargs))
    return Path(hf_hub_download(name_or_path, CONFIG_FILE, **hub_kwargs)).parent


def repository_id(name_or_path: str | os.PathLike[str]) -> str:
    """The name of something that is no folder, if it may be a repository.

    Raises:
        FileNotFoundError: If it cannot be.
    """
    if not isinstance(name_or_path, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name_or_path):
        raise FileNotFoundError(
            f"There is no folder {os.fspath(name_or_path)!r}: give the folder of a checkpoint or a repository id."
        )
    return name_or_path


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json`.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If it is too large or not a JSON object.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}: give the folder of a saved transformers model.")
    return _read_object(folder / CONFIG_FILE, MAX_CONFIG_BYTES)


def is_compressed(folder: Path) -> bool:
    """Whether the weights in a folder are stored by their non-zeros."""
    return any((folder / name).is_file() for name in (COMPRESSED_WEIGHTS_FILE, COMPRESSED_INDEX_FILE))


def weight_files(folder: Path, compressed: bool) -> list[Path]:
    """The weight files of a checkpoint, which are in the folder itself.

    Args:
        folder: Folder of the checkpoint.
        compressed: Whether to look for the files of a compressed checkpoint.

    Raises:
        FileNotFoundError: If there are none, or one is missing.
        ValueError: If the index cannot be read or names other files.
    """
    weights, index = (COMPRESSED_WEIGHTS_FILE, COMPRESSED_INDEX_FILE) if compressed else (WEIGHTS_FILE, INDEX_FILE)
    if (folder / weights).is_file():
        return [folder / weights]
    if not (folder / index).is_file():
        raise FileNotFoundError(
            f"{folder} holds neither {weights} nor {index}. Only safetensors are read, never pickle files, because "
            "they can run code: if you trust such a model, load it and save it again with save_pretrained()."
        )
    weight_map = _weight_map(folder / index, _read_object(folder / index, MAX_INDEX_BYTES))
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but {index} names it: download or copy it again.")
    return paths


def check_index(path: Path) -> None:
    """Checks the index of a sharded checkpoint as far as transformers relies on it.

    Args:
        path: The index.

    Raises:
        ValueError: If it cannot be read, names other files than safetensors of its own folder, or has no metadata.
    """
    index = _read_object(path, MAX_INDEX_BYTES)
    _weight_map(path, index)
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{path} holds no metadata object.")


def _weight_map(path: Path, index: dict[str, Any]) -> dict[str, str]:
    """Tensor to file, out of the index that was read from `path`."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} holds no weight_map from tensor to file.")
    ending = path.name.removeprefix("model").removesuffix(".index.json")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(rf"[\w.-]+{re.escape(ending)}", name):
            raise ValueError(f"{path} names {name!r}, which is not a {ending} file in the same folder.")
    return weight_map


def read_index_metadata(folder: Path, index: str) -> dict[str, Any]:
    """What the index of a sharded checkpoint says besides the names of tensors and files."""
    metadata = _read_object(folder / index, MAX_INDEX_BYTES).get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def own_file(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is an ordinary file that belongs to it.

    A link counts if it leads to a file in the folder or, in a cache of the Hub, to one of its blobs.
    """
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    blobs = [parent.with_name("blobs") for parent in (home, *home.parents) if parent.name == "snapshots"]
    return real.is_file() and any(place in real.parents for place in (home, *blobs))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file.

    Raises:
        ValueError: If it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from error


def _read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Reads one JSON object from a file that is not trusted."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; more than {max_bytes:,} are not read.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold one JSON object, not a {type(value).__name__}.")
    return value


def bounded_copy(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Copies plain JSON values of bounded size and depth.

    Raises:
        ValueError: If it is anything else.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise ValueError(f"A string of {len(value):,} characters is too long: at most {MAX_CHARACTERS:,}.")
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("A string holds half a surrogate pair, which a text file cannot hold.")
        return value
    if isinstance(value, (int, float)):
        if not abs(value) <= 2**64:
            raise ValueError("A number is not finite or is beyond 2**64.")
        return value
    if not isinstance(value, (list, dict)) or not depth:
        raise ValueError(f"A {type(value).__name__} is not a plain JSON value, or nested more than {MAX_DEPTH} deep.")
    if len(value) > MAX_ENTRIES:
        raise ValueError(f"A {type(value).__name__} of {len(value):,} entries is too long: at most {MAX_ENTRIES:,}.")
    if isinstance(value, list):
        return [bounded_copy(entry, depth - 1) for entry in value]
    if not all(isinstance(key, str) for key in value):
        raise ValueError("An object has keys that are not strings.")
    return {bounded_copy(key): bounded_copy(entry, depth - 1) for key, entry in value.items()}
