"""Real processes that are quick to start: a server forks them, which has imported what most of them need.

What is imported beforehand belongs to others than Hugging Face and this project, so each process imports those itself,
in the order that a test is about, and with the environment that it was given. It has a pid, signals, streams and an
end of its own as any other process does.
"""

import atexit
import functools
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent


@functools.cache
def python() -> str:
    """A program that takes the place of `sys.executable`, before `-c`, `-m` or the path of a script."""
    if not hasattr(os, "fork"):
        return sys.executable
    folder = tempfile.TemporaryDirectory()
    place, program = (Path(folder.name) / name for name in ("socket", "python"))
    listening = socket.create_server(str(place), family=socket.AF_UNIX)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, str(_HERE / "server.py"), str(listening.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        pass_fds=[listening.fileno()],
    )
    listening.close()

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()  # which the server waits for
        server.wait()
        folder.cleanup()

    atexit.register(end)
    client = (_HERE / "client.py").read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable} -IS\nPLACE = {str(place)!r}\n{client}", encoding="utf-8")
    program.chmod(0o700)
    return str(program)
