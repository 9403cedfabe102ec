"""The processes that share a piece of work, as `torchrun` and `accelerate launch` start them."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed

from ..utils import causes

logger = logging.getLogger(__name__)
T = TypeVar("T")

_BUCKET = 2**26
"""Most bytes of a flat buffer; a larger tensor is added up where it lies."""


class LostProcessError(RuntimeError):
    """Another process ended early or did not answer in time."""


class Processes:
    """The processes that do one piece of work together; the methods that communicate are called by all of them alike.

    Before they communicate, they tell each other whether one has failed. If one has, its error is raised in all of
    them, wherever each of them is: no process waits for another one that has given up.

    Args:
        rank: Number of this process.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._known: BaseException | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process shows progress and writes results."""
        return self.rank == 0

    def check(self) -> None:
        """Raises the error of a process that has failed, in all of them."""
        if self.size > 1:
            self._exchange(None)

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Adds up tensors over the processes; each gets the same totals.

        Args:
            tensors: As many on every process, of the same shapes and types. Small ones travel together.

        Returns:
            The totals, on the devices of the tensors, which may hold anything afterwards.
        """
        if self.size == 1:
            return list(tensors)
        totals = list(tensors)
        for numbers in _buckets(tensors):
            place = self._place(tensors[numbers[0]])
            if len(numbers) == 1:
                (number,) = numbers
                there = tensors[number].to(place).contiguous()
                self.check()  # here, as there may have been no memory for it
                with self._answered():
                    distributed.all_reduce(there)
                totals[number] = there.to(tensors[number].device)
                continue
            flat = torch.cat([tensors[number].flatten() for number in numbers]).to(place)
            self.check()
            with self._answered():
                distributed.all_reduce(flat)
            flat = flat.to(tensors[numbers[0]].device)
            sizes = [tensors[number].numel() for number in numbers]
            for number, part in zip(numbers, torch.split(flat, sizes), strict=True):
                totals[number] = part.view(tensors[number].shape)
        return totals

    def from_first(self, do: Callable[[], T]) -> T:
        """Does something in the first process only, and gives the result, which can be pickled, to all."""
        if self.size == 1:
            return do()
        found = [do()] if self.is_first else [None]
        self.check()
        with self._answered():
            distributed.broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of their numbers.

        Args:
            value: What this one has; it can be pickled.
        """
        if self.size == 1:
            return [value]
        self.check()
        found: list[Any] = [None] * self.size
        with self._answered():
            distributed.all_gather_object(found, value)
        return found

    def check_alike(self, facts: Mapping[str, Any], advice: str) -> None:
        """Checks that all processes know the same.

        Args:
            facts: What it is, to follow "differ in", to a value that can be pickled and compared.
            advice: What to do if they do not.

        Raises:
            ValueError: If they do not; it names what differs, and where.
        """
        if self.size == 1:
            return
        found = self.gather(dict(facts))
        for name, expected in found[0].items():
            if others := [rank for rank in range(self.size) if found[rank][name] != expected]:
                raise ValueError(
                    f"Of the {self.size} processes that share this work, {', '.join(map(str, others))} and 0 differ in "
                    f"{name}. {advice}"
                )

    def part(self) -> None:
        """Ends the common work: from here on every process works alone."""
        self.check()
        self.size = 1

    def is_known(self, error: BaseException) -> bool:
        """Whether an error was raised in all processes."""
        return any(each is self._known for each in causes(error))

    def meet(self) -> None:
        """Waits for the others after an error that all know, so that none ends before another has reported it."""
        with suppress(LostProcessError), self._answered():
            distributed.barrier()

    def fail(self, error: BaseException) -> NoReturn:
        """Tells the others of an error, unless they know, and raises it, or that of an earlier process."""
        is_told = self.is_known(error) or any(isinstance(each, LostProcessError) for each in causes(error))
        if self.size > 1 and not is_told:
            try:
                self._exchange(error)
            except LostProcessError:  # nobody is left to tell
                if type(error) is RuntimeError:  # as backends raise it in the communication of FSDP2
                    raise
        raise error

    def _exchange(self, error: BaseException | None) -> None:
        """Raises the error of the first process that has one; every call of a process meets one of each other."""
        has_failed = torch.tensor(int(error is not None), device=self._place(torch.empty(0)))
        with self._answered():
            distributed.all_reduce(has_failed, distributed.ReduceOp.MAX)
        if not has_failed:
            return
        found: list[BaseException | None] = [None] * self.size
        with self._answered():
            distributed.all_gather_object(found, None if error is None else _portable(error))
        rank = next(rank for rank, each in enumerate(found) if each is not None)
        known = self._known = error if rank == self.rank or isinstance(error, KeyboardInterrupt) else found[rank]
        assert known is not None  # since the processes agree that one has failed
        known.add_note(f"This happened in process {rank} of {self.size}.")
        if known is error:
            raise known
        raise known from error

    def _place(self, tensor: Tensor) -> torch.device:
        """Where the group can send a tensor from: where it is, or else on the GPU of this process."""
        kinds = dict(part.split(":") for part in str(distributed.get_backend_config()).split(","))
        if tensor.device.type in kinds:
            return tensor.device
        kind = next(iter(kinds))
        return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Inside the block, errors of the backend say what they mean."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            which = "The other process" if self.size == 2 else f"One of the other {self.size - 1} processes"
            raise LostProcessError(
                f"{which} ended early, or worked for longer than this one may wait: see what it said last, and start "
                "all of them again. If it was only slow, give init_process_group a longer timeout."
            ) from error


_ALONE = Processes()
_current: ContextVar[Processes | None] = ContextVar("processes", default=None)


def current() -> Processes:
    """The processes that share the work that goes on; outside `sharing`, this one alone."""
    return _current.get() or _ALONE


@contextmanager
def sharing() -> Iterator[Processes]:
    """Inside the block, all processes of the group that is initialised share the work; all of them must enter it.

    An error in one of them ends the block in all of them with that error. A block inside another one is a part of it.
    """
    if (outer := _current.get()) is not None:
        yield outer
        return
    processes = _started()
    token = _current.set(processes)
    try:
        try:
            yield processes
        except (Exception, KeyboardInterrupt) as error:
            processes.fail(error)
        processes.check()
    finally:
        _current.reset(token)


@contextmanager
def work_alone() -> Iterator[None]:
    """Inside the block, this process works alone, whatever process group there is."""
    token = _current.set(_ALONE)
    try:
        yield
    finally:
        _current.reset(token)


def _started() -> Processes:
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size())
    size = os.environ.get("WORLD_SIZE", "1")
    if size not in ("", "1") and os.environ.get("RANK"):
        logger.warning(
            "This is one of %s processes, but each of them does all of the work: to share it out, call "
            "torch.distributed.init_process_group() first.",
            size,
        )
    return _ALONE


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of tensors that fit into one flat buffer."""
    buckets: dict[Any, list[list[int]]] = {}
    room: dict[Any, int] = {}
    for number, tensor in enumerate(tensors):
        key = (tensor.dtype, tensor.device)
        if key not in buckets or room[key] < tensor.nbytes:
            buckets.setdefault(key, []).append([])
            room[key] = _BUCKET
        buckets[key][-1].append(number)
        room[key] -= tensor.nbytes
    return [bucket for found in buckets.values() for bucket in found]


def _portable(error: BaseException) -> BaseException:
    """The error as another process can raise it."""
    if isinstance(error, KeyboardInterrupt):
        return RuntimeError("Another process was interrupted.")
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
