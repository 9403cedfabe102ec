"""Blocks come into memory when they are needed, and what was changed in them goes back to where they are kept."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .leaving import Leaving, Read, save_apart
from .offloading import OffloadedTensor, offloaded_tensors, tied_keys
from .pages import in_large_pages, read_ahead

logger = logging.getLogger(__name__)

_OURS = "mwanda"
"""In what accelerate knows of a tensor: the index of the model for which its file was made here; a copy has another."""


class BlockSource:
    """The blocks of a model, wherever they are: in memory, or offloaded to memory or disk by accelerate.

    A block that is in memory anyway costs nothing here. Of an offloaded one, all tensors are brought to the device
    where it runs, and changes are written back when the block is let go: into the memory that accelerate reads from, or
    into a new file, which accelerate reads from then on. Files of the checkpoint are never changed.

    Of blocks that come one after the other, one is worked on while a thread writes the last one, and then has the next
    one read from disk: into memory that the system can take back at any time, or onto the device if that has memory of
    its own. A block comes into memory when no more than half of the last one is still there.

    Args:
        blocks: Module path to block.

    Attributes:
        keep: Writes the changed tensors of a block, or those that are this process's to write, and returns the file. It
            takes each out of what it is given, so that it can leave memory. None: into the folder that the model has.

    Raises:
        ValueError: If a weight of a block is nowhere, or is on disk and there is no folder for changed ones.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self.keep: Callable[[str, dict[str, Tensor]], Path] | None = None
        self._blocks = dict(blocks)
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []
        self._made: list[Path] = []
        self._elsewhere: set[str] = set()
        self._on_disk: set[str] = set()
        indices: dict[int, dict[str, Any]] = {}
        for name, block in self._blocks.items():
            found = list(offloaded_tensors(block))
            _check(name, block, found)
            indices |= {id(tensor.place[0]): tensor.place[0] for tensor in found if tensor.place is not None}
            if found:
                self._elsewhere.add(name)
            is_whole = all(parameter.is_meta for parameter in block.parameters())
            if found and is_whole and all(tensor.place is not None for tensor in found):
                self._on_disk.add(name)
        self._tied = {number: tied_keys(index) for number, index in indices.items()}

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
            coming = disk.submit(self._read_ahead, waiting[0])
            leaving = None
            for name, following in zip(waiting, [*waiting[1:], None], strict=True):
                ahead = coming.result()
                if self._has_tied(name):
                    going.close()
                found = self._read(name, ahead, leaving)
                if following is not None:
                    coming = disk.submit(self._read_ahead, following)  # once the last block is written
                with self._installed(name, found) as changed:
                    del found
                    yield name
                going.close()
                leaving = None
                if changed:
                    tensors, leaving = [tensor for tensor, _ in changed], Leaving(changed)
                    changed.clear()
                    path = disk.submit(self._write, name, tensors, leaving)
                    going.push(partial(self._adopt_written, name, tensors, path))

    def in_groups(self, groups: Sequence[Sequence[str]]) -> Generator[Sequence[str], None, None]:
        """Yields groups of blocks, each while all of it is in memory.

        What was changed in a group is where it belongs when the next one is asked for. If all groups are of one block,
        they come as in `one_by_one`; otherwise they are read and written while nothing else happens.

        Raises:
            ValueError: If two blocks of a group share a matrix on disk.
        """
        if all(len(group) == 1 for group in groups):
            with closing(self.one_by_one(name for group in groups for name in group)) as names:
                for name in names:
                    yield (name,)
            return
        for group in groups:
            self._check_apart(group)
        for group in groups:
            with ExitStack() as stack:
                for name in group:
                    stack.enter_context(self.held(name))
                yield group

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Inside the block of code, a block of the model is in memory."""
        with self._installed(name, self._read(name)) as changed:
            yield
        if changed:
            tensors, leaving = [tensor for tensor, _ in changed], Leaving(changed)
            changed.clear()
            self._redirect(tensors, self._write(name, tensors, leaving), self.keep is None)

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

    def _read_ahead(self, name: str) -> dict[OffloadedTensor, Tensor]:
        """Opens everything that is elsewhere of a block, and has it read; what goes to a GPU is there then.

        A tensor that other blocks have as well is opened when it is needed, as it may still change.
        """
        ahead = {}
        for tensor in offloaded_tensors(self._blocks[name]):
            if self._keys(tensor)[1:]:
                continue
            ahead[tensor] = tensor.value.to(tensor.device)
            if _is_copied(tensor):
                read_ahead(ahead[tensor])
        return ahead

    def _read(
        self, name: str, ahead: dict[OffloadedTensor, Tensor] | None = None, leaving: Leaving | None = None
    ) -> Read:
        """Everything that is elsewhere of a block.

        Args:
            name: The block.
            ahead: What has been opened already; empty in the end.
            leaving: What is being written of the last block.
        """
        found = []
        for tensor in offloaded_tensors(self._blocks[name]):
            value = (ahead or {}).pop(tensor, None)
            value = tensor.value if value is None else value
            if _is_copied(tensor):
                if leaving is not None:
                    leaving.half_gone.wait()
                value = _copy(value)
            found.append((tensor, value.to(tensor.device)))
        return found

    def _check_apart(self, group: Sequence[str]) -> None:
        """Checks that no two blocks would each have a copy of one matrix."""
        keys = [tuple(self._keys(tensor)) for name in group for tensor in offloaded_tensors(self._blocks[name])]
        tied = [key for key in keys if key[1:]]
        if len({*tied}) < len(tied):
            raise ValueError(
                f"{' and '.join(map(repr, group))} share {tied[0][0]!r}, so they cannot be trained together from disk: "
                "leave reconstruction_blocks out, or load the model into memory."
            )

    def _has_tied(self, name: str) -> bool:
        """Whether a block on disk has a tensor that is elsewhere in the model as well."""
        return any(self._keys(tensor)[1:] for tensor in offloaded_tensors(self._blocks[name]))

    def _keys(self, tensor: OffloadedTensor) -> list[str]:
        """For values on disk: all keys in the index of files that stand for them."""
        if (place := tensor.place) is None:
            return []
        index, key = place
        return self._tied[id(index)].get(key, [key])

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

    def _write(self, name: str, tensors: Iterable[OffloadedTensor], values: Leaving) -> Path:
        """Writes what was changed in a block to disk."""
        try:
            if self.keep is not None:
                return self.keep(name, values)
            path = save_apart(name, values, next(tensor.folder for tensor in tensors))
            self._made.append(path)
            return path
        finally:
            values.half_gone.set()

    def _adopt_written(
        self,
        name: str,
        tensors: Iterable[OffloadedTensor],
        path: Future[Path],
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        """Waits until a block is written, and lets accelerate read it from there.

        If the work on the next block has ended early, the caller learns of what ended it, and not of what came of this.
        """
        try:
            written = path.result()
        except Exception as failure:
            if error is None:
                raise
            logger.warning("%s could not be written: %s", name, failure)
            return
        self._redirect(tensors, written, self.keep is None)

    def _redirect(self, tensors: Iterable[OffloadedTensor], path: Path, is_ours: bool = False) -> None:
        """Lets accelerate read what is in another file from there, where it has the name that it has in the model."""
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        for tensor in tensors:
            if (place := tensor.place) is None or place[1] not in names:
                continue
            index, key = place
            owner = id(index) if is_ours else None
            for each in self._keys(tensor):
                self._replaced.append((index, each, index[each]))
                index[each] = {**index[each], "safetensors_file": str(path), "weight_name": key, _OURS: owner}


def _enter(holds: ExitStack, source: BlockSource, name: str, *_: Any) -> None:
    holds.enter_context(source.held(name))


def _leave(holds: ExitStack, *_: Any) -> None:
    holds.close()


def _is_copied(tensor: OffloadedTensor) -> bool:
    """Whether a tensor of a file is used in the memory of the machine."""
    return tensor.place is not None and tensor.device.type == "cpu"


def _copy(value: Tensor) -> Tensor:
    """A copy of a tensor of a file, so that it is really read now."""
    return in_large_pages(torch.empty_like(value)).copy_(value)


def _slots(tensor: OffloadedTensor) -> dict[str, Any]:
    parameters = tensor.module._parameters
    return parameters if tensor.name in parameters else tensor.module._buffers


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
