"""Files of JSON lines that grow by one for every finished piece of work, so that an interrupt loses nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[bytes]:
    """The finished lines of a file; a last one without a line break was left by an interrupted run.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last may end within a character


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Adds a line, in place of an unfinished line that an interrupted run may have left.

    Raises:
        OSError: If the file cannot be written.
    """
    line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
