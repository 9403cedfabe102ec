"""What the files of a checkpoint hold, from their headers; no weights are read or downloaded."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..modeling.tensor_file import DTYPES
from ..storage.files import DOWNLOADED, is_compressed, opened, repository_id, weight_files


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: Its type, as safetensors calls it.
        shape: Its shape.
        nbytes: Its size.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_headers(name: str | os.PathLike[str], **source: Any) -> dict[str, StoredTensor]:
    """Reads the tables of contents of the safetensors files of a checkpoint.

    Args:
        name: Folder or repository. Of a repository that is not in the cache, only the headers are downloaded.
        **source: `revision` and `token` of a repository.

    Returns:
        Name of a tensor in the files to what is stored under it.

    Raises:
        FileNotFoundError: If there are no safetensors files, or one is missing.
        OSError: If the repository cannot be reached.
        ValueError: If a file is damaged.
    """
    if Path(name).is_dir():
        return _of_folder(Path(name))
    repository = repository_id(name)
    from huggingface_hub import get_safetensors_metadata, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError

    try:
        return _of_folder(
            Path(snapshot_download(repository, allow_patterns=list(DOWNLOADED), local_files_only=True, **source))
        )
    except (LocalEntryNotFoundError, FileNotFoundError):  # none or some of the files are in the cache
        pass
    try:
        found = get_safetensors_metadata(repository, **source)
    except NotASafetensorsRepoError as error:
        raise FileNotFoundError(f"{repository} holds no safetensors files, and others are not read.") from error
    tensors = (item for file in found.files_metadata.values() for item in file.tensors.items())
    return {key: _stored(each.dtype, each.shape) for key, each in tensors}


def dtype_of(headers: Mapping[str, StoredTensor]) -> str | None:
    """The type of most bytes among the weights; None if there are none in floating point."""
    sizes: dict[str, int] = {}
    for tensor in headers.values():
        dtype = DTYPES.get(tensor.dtype)
        if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
            sizes[str(dtype).removeprefix("torch.")] = sizes.get(str(dtype).removeprefix("torch."), 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _of_folder(folder: Path) -> dict[str, StoredTensor]:
    found = {}
    for path in weight_files(folder, compressed=is_compressed(folder)):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                entry = file.get_slice(name)
                found[name] = _stored(entry.get_dtype(), entry.get_shape())
    return found


def _stored(dtype: str, shape: Any) -> StoredTensor:
    count = 1
    for length in shape:
        count *= length
    width = DTYPES[dtype].itemsize if dtype in DTYPES else 1
    return StoredTensor(dtype, tuple(shape), count * width)
