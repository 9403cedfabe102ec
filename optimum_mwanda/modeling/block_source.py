"""Blocks come into memory when they are needed, and what was changed in them goes back to where they are kept."""

import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .offloading import OffloadedTensor, offloaded_tensors

_OURS = "mwanda"
"""In what accelerate knows of a tensor: the index of the model for which its file was made here; a copy has another."""
Read = list[tuple[OffloadedTensor, Tensor]]


class BlockSource:
    """The blocks of a model, wherever they are: in memory, or offloaded to memory or disk by accelerate.

    A block that is in memory anyway costs nothing here. Of an offloaded one, all tensors are brought to the device
    where it runs, and changes are written back when the block is let go: into the memory that accelerate reads from, or
    into a new file, which accelerate reads from then on. Files of the checkpoint are never changed. Of blocks that come
    one after the other, one is worked on while a thread writes the last one, and then reads the next: never are there
    more than two in memory.

    Args:
        blocks: Module path to block.

    Attributes:
        keep: Writes the changed tensors of a block, or those that are this process's to write, and returns the file;
            None: into the folder that the model has.

    Raises:
        ValueError: If a weight of a block is nowhere, or is on disk and there is no folder for changed ones.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self.keep: Callable[[str, Mapping[str, Tensor]], Path] | None = None
        self._blocks = dict(blocks)
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []
        self._made: list[Path] = []
        self._elsewhere: set[str] = set()
        self._on_disk: set[str] = set()
        for name, block in self._blocks.items():
            found = list(offloaded_tensors(block))
            _check(name, block, found)
            if found:
                self._elsewhere.add(name)
            is_whole = all(parameter.is_meta for parameter in block.parameters())
            if found and is_whole and all(tensor.place is not None for tensor in found):
                self._on_disk.add(name)

    @property
    def is_resident(self) -> bool:
        """Whether all blocks are in memory all the time."""
        return not self._elsewhere

    @property
    def is_on_disk(self) -> bool:
        """Whether all of all blocks is on disk."""
        return len(self._on_disk) == len(self._blocks)

    def keeps(self, name: str) -> bool:
        """Whether the values that a block had in the beginning stay where they are, whatever is changed in it."""
        return name in self._on_disk

    def one_by_one(self, names: Iterable[str]) -> Generator[str, None, None]:
        """Yields the names of blocks, each while it is in memory; others are written and read meanwhile.

        What was changed in a block is where it belongs when the one after the next is asked for, or at the end. If it
        cannot be written, the error is raised there.
        """
        waiting = list(names)
        if not self._elsewhere.intersection(waiting):
            yield from waiting
            return
        with ThreadPoolExecutor(1, thread_name_prefix="mwanda-disk") as disk, ExitStack() as going:
            coming = disk.submit(self._read, waiting[0])
            for name, following in zip(waiting, [*waiting[1:], None], strict=True):
                found = coming.result()
                if following is not None:
                    coming = disk.submit(self._read, following)  # once the last block is written, and makes room
                with self._installed(name, found) as changed:
                    del found
                    yield name
                going.close()
                if changed:
                    going.callback(self._adopt_written, _places(changed), disk.submit(self._write, name, changed))
                del changed

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Inside the block of code, a block of the model is in memory."""
        with self._installed(name, self._read(name)) as changed:
            yield
        if changed:
            self._redirect(_places(changed), self._write(name, changed), self.keep is None)

    @contextmanager
    def held_in_calls(self, names: Iterable[str]) -> Iterator[None]:
        """Inside the block of code, each of some blocks is in memory while the model calls it."""
        with ExitStack() as stack:
            for name in self._elsewhere.intersection(names):
                holds = ExitStack()
                stack.callback(holds.close)  # where a call ended in a way that calls no hook
                enter, leave = partial(_enter, holds, self, name), partial(_leave, holds)
                stack.callback(self._blocks[name].register_forward_pre_hook(enter).remove)
                stack.callback(self._blocks[name].register_forward_hook(leave, always_call=True).remove)
            yield

    def adopt(self, name: str, path: Path) -> None:
        """Lets accelerate read tensors of a block from a file that was written for it earlier."""
        self._redirect(offloaded_tensors(self._blocks[name]), path)

    def restore(self) -> None:
        """Lets accelerate read the values on disk again that were there in the beginning."""
        while self._replaced:
            index, key, before = self._replaced.pop()
            index[key] = before
        while self._made:
            self._made.pop().unlink(missing_ok=True)

    def settle(self) -> None:
        """Deletes the files of earlier changes that nobody reads any more; nothing can be restored afterwards."""
        before = {entry["safetensors_file"] for index, _, entry in self._replaced if entry.get(_OURS) == id(index)}
        indices = {id(index): index for index, *_ in self._replaced}.values()
        read = {entry.get("safetensors_file") for index in indices for entry in index.values()}
        self._replaced.clear()
        self._made.clear()
        for path in before - read:
            with suppress(OSError):  # some systems do not delete what is open
                Path(path).unlink()

    def _read(self, name: str) -> Read:
        """Everything that is elsewhere of a block; a tensor of a file is copied, so that it is really read now."""
        found = []
        for tensor in offloaded_tensors(self._blocks[name]):
            device = torch.device(tensor.hook.execution_device if tensor.hook.execution_device is not None else "cpu")
            found.append((tensor, tensor.value.to(device, copy=tensor.place is not None)))
        return found

    @contextmanager
    def _installed(self, name: str, found: Read) -> Iterator[Read]:
        """Puts tensors into their modules, tells accelerate's hooks to leave them there, and takes them away again.

        What was changed goes back into memory at once, or is in the list in the end, to be written to disk.
        """
        hooks = [tensor.hook for tensor, _ in found]
        held = []
        changed: Read = []
        try:
            for hook in hooks:
                hook.offload = False
            for tensor, value in found:
                empty = _slots(tensor)[tensor.name]
                full = nn.Parameter(value, empty.requires_grad) if isinstance(empty, nn.Parameter) else value
                held.append((tensor, empty, full, full._version))
                _slots(tensor)[tensor.name] = full
            found.clear()
            yield changed
            for tensor, _, full, version in held:
                if full._version == version:
                    continue
                if tensor.place is not None:
                    changed.append((tensor, full))
                elif tensor.value.data_ptr() != full.data_ptr():
                    tensor.value.copy_(full)
        finally:
            for tensor, empty, _, _ in held:
                _slots(tensor)[tensor.name] = empty
            for hook in hooks:
                hook.offload = True

    def _write(self, name: str, changed: Read) -> Path:
        """Writes what was changed in a block to disk, a tied tensor once."""
        values = {tensor.place[1]: value for tensor, value in changed if tensor.place is not None}
        if self.keep is not None:
            return self.keep(name, values)
        path = _save(name, values, next(tensor.folder for tensor, _ in changed))
        self._made.append(path)
        return path

    def _adopt_written(self, tensors: Iterable[OffloadedTensor], path: Future[Path]) -> None:
        """Waits until a block is written, and lets accelerate read it from there."""
        self._redirect(tensors, path.result(), self.keep is None)

    def _redirect(self, tensors: Iterable[OffloadedTensor], path: Path, is_ours: bool = False) -> None:
        """Lets accelerate read what is in another file from there, where it has the name that it has in the model."""
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        for tensor in tensors:
            if (place := tensor.place) is not None and place[1] in names:
                index, key = place
                self._replaced.append((index, key, index[key]))
                owner = id(index) if is_ours else None
                index[key] = {**index[key], "safetensors_file": str(path), "weight_name": key, _OURS: owner}


def _enter(holds: ExitStack, source: BlockSource, name: str, *_: Any) -> None:
    holds.enter_context(source.held(name))


def _leave(holds: ExitStack, *_: Any) -> None:
    holds.close()


def _places(changed: Read) -> list[OffloadedTensor]:
    return [tensor for tensor, _ in changed]


def _slots(tensor: OffloadedTensor) -> dict[str, Any]:
    parameters = tensor.module._parameters
    return parameters if tensor.name in parameters else tensor.module._buffers


def _save(name: str, values: Mapping[str, Tensor], folder: str | None) -> Path:
    handle, path = tempfile.mkstemp(prefix=f"{name}.", suffix=".safetensors", dir=folder)
    os.close(handle)
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, path)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)


def _check(name: str, block: nn.Module, found: list[OffloadedTensor]) -> None:
    """Checks that everything in a block can be brought into memory, and goes back."""
    known = {id(getattr(tensor.module, tensor.name)) for tensor in found}
    for path, parameter in block.named_parameters(name):
        if parameter.device.type == "meta" and id(parameter) not in known:
            raise ValueError(
                f"{path!r} has no values (meta device), and accelerate does not keep any for it: load the whole model "
                "into memory, for example with device_map='cpu', or let from_pretrained offload it with a device_map."
            )
    if any(tensor.place is not None and tensor.folder is None for tensor in found):
        raise ValueError(
            f"Weights of {name!r} are offloaded to disk, and there is no folder for the pruned ones: load the model "
            "with offload_folder=..., a folder that stays as long as the model is used."
        )
