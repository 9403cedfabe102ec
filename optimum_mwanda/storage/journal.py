"""Finished parts of a long run, which outlive the process that made them."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..modeling.tensor_file import write_out
from ..utils import abridged
from .files import opened

logger = logging.getLogger(__name__)

_RUN = "run.json"
_FACTS = "facts"
_NOTHING = "nothing"


class OtherRunError(ValueError):
    """The journal is of a run with other settings, data, model or library; the message names what differs."""


class Journal:
    """Parts of one run, each a safetensors file.

    A file gets its name, which holds its SHA-256, once it is complete and on the disk. So whatever ends the process, a
    part is there as a whole or not at all, and a part that was damaged later is seen, deleted and made again.

    Args:
        folder: Where the parts are; created when a run is opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_open = False
        self._known: dict[tuple[str, str], Path] = {}

    def clear(self) -> None:
        """Forgets all parts, of whatever run they are."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._known, self._is_open = {}, False

    def open(self, run: Mapping[str, Any]) -> None:
        """Begins a run, or goes on with the one that is here.

        Args:
            run: What must be the same for parts of two runs to be equal, as JSON values.

        Raises:
            OtherRunError: If another run is here.
        """
        described: dict[str, Any] = json.loads(json.dumps(run))
        path = self._folder / _RUN
        if path.is_file():
            if changes := list(_changes(json.loads(path.read_bytes()), described)):
                raise OtherRunError(
                    f"An interrupted run left its progress in {self._folder}, and this run differs from it: "
                    f"{abridged(changes)}. Go on with what that run had, or begin anew (restart=True, --restart)."
                )
        else:
            self.clear()  # nobody knows of which run they are
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(described, indent=2), encoding="utf-8")
            self._settle(partial, path)
        for rest in self._folder.glob("*.partial"):
            rest.unlink(missing_ok=True)
        self._known, self._is_open = dict(self._intact()), True
        if self._known:
            logger.warning("Going on with an interrupted run, of which %s parts are finished.", len(self._known))

    @property
    def parts(self) -> Mapping[tuple[str, str], Path]:
        """Kind and name of every part to its file."""
        return self._known

    def join(self, parts: Mapping[tuple[str, str], Path]) -> None:
        """Takes part in a run that another process has opened.

        Args:
            parts: What that process, or one that works with it, knows to be finished.

        Raises:
            OSError: If the folder is not here.
        """
        if not (self._folder / _RUN).is_file():
            raise OSError(
                f"{self._folder} is not the folder of the first process: processes that write one output need the same "
                "file system."
            )
        self._known, self._is_open = {**self._known, **parts}, True

    def put(self, kind: str, name: str, tensors: dict[str, Tensor], facts: Any = None) -> Path:
        """Keeps a part.

        Args:
            kind: What sort of part it is; without a hyphen.
            name: Its name among the parts of its kind.
            tensors: Its tensors; each is taken out when it is written, so that it can leave memory.
            facts: What else belongs to it, as JSON values.

        Returns:
            Its file.

        Raises:
            ValueError: If no run was opened.
        """
        if not self._is_open:
            raise ValueError(
                f"The journal in {self._folder} keeps parts of a run: open() it with what the run is first."
            )
        partial = self._folder / f"{kind}-{name}.{os.getpid()}.partial"
        digest = hashlib.sha256()
        with partial.open("wb") as file:

            def write(data: memoryview | bytes) -> None:
                file.write(data)
                digest.update(data)

            if not tensors:  # old versions of safetensors cannot read a file without any
                tensors[_NOTHING] = torch.zeros(1)
            write_out(tensors, write, {_FACTS: json.dumps(facts)})
        path = self._folder / f"{kind}-{name}-{digest.hexdigest()}.safetensors"
        self._settle(partial, path)
        self._known[kind, name] = path
        return path

    def find(self, kind: str, name: str) -> Path | None:
        """The file of a part; None if there is none."""
        return self._known.get((kind, name))

    def facts(self, kind: str, name: str) -> Any:
        """What `put` was given with a part that is there."""
        with opened(self._known[kind, name]) as file:
            return json.loads(file.metadata()[_FACTS])

    def tensors(self, kind: str, name: str) -> dict[str, Tensor]:
        """The tensors of a part that is there."""
        with opened(self._known[kind, name]) as file:
            return {key: file.get_tensor(key) for key in file.keys() if key != _NOTHING}  # noqa: SIM118

    def _intact(self) -> Iterator[tuple[tuple[str, str], Path]]:
        """The parts whose content fits their names; others are deleted."""
        for path in sorted(self._folder.glob("*.safetensors")):
            kind, _, rest = path.stem.partition("-")
            name, _, digest = rest.rpartition("-")
            if digest == _digest(path):
                yield (kind, name), path
            else:
                logger.warning("%s is damaged, and is made again.", path)
                path.unlink()

    def _settle(self, partial: Path, path: Path) -> None:
        """Gives a complete file its name, once it is on the disk."""
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """What differs between two values of JSON, one line per leaf."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield f"{path} was {old!r}, and is {new!r}"
