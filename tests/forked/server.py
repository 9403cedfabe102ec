"""Forks processes that run what they are given as an interpreter of their own would; `client.py` asks for them."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from types import ModuleType
from typing import Any, NoReturn

IMPORTED = (
    *("torch", "torch._dynamo", "torch.utils.data", "torch.distributed.checkpoint", "torch.distributed.fsdp"),
    *("torch.distributed.run", "torch.distributed.tensor", "torch.nn.attention.flex_attention"),
    *("pandas", "pyarrow.dataset", "scipy.stats", "sympy", "PIL.Image", "aiohttp", "fsspec", "httpx", "jinja2"),
    *("multiprocess", "psutil", "regex", "requests", "tqdm.auto", "yaml"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(listening: socket.socket) -> dict[str, Any] | None:
    """Forks until standard input is closed; what it returns is for the forked process to do."""
    for number in SIGNALS:  # which a terminal also sends to who started the server
        signal.signal(number, signal.SIG_IGN)
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        asking, _ = listening.accept()
        with asking:
            start, streams, *_ = socket.recv_fds(asking, 8, 3)
            request = json.loads(asking.makefile("rb").read(int.from_bytes(start, "big")))
            if not os.fork():
                pid = os.fork()
                if pid:
                    see_it_end(pid, asking)
                return {**request, "streams": streams}
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return None


def see_it_end(pid: int, asking: socket.socket) -> NoReturn:
    """Tells who asked how a process ended, and ends it if they are there no more."""

    def end_with_them() -> None:
        with contextlib.suppress(OSError):  # they may have gone without reading
            asking.recv(1)
        if not ended.is_set():
            os.kill(pid, signal.SIGKILL)

    ended = threading.Event()
    asking.sendall(b"%d\n" % pid)
    threading.Thread(target=end_with_them, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    ended.set()
    with contextlib.suppress(OSError):
        asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def run(words: list[str], streams: list[int], environment: dict[str, str], folder: str, ignored: list[int]) -> None:
    """Does what `python WORDS` does, up to its end."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Those that were there know what their streams were like before.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if words[0] == "-u" else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for number in SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else default)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    importlib.invalidate_caches()
    if words[0] == "-u":
        words = words[1:]
    option = words[0] if words[0] in ("-c", "-m") else ""
    what, *sys.argv[1:] = words[1:] if option else words
    sys.argv[0] = option or what
    first = {"-c": "", "-m": folder}.get(option, os.path.dirname(os.path.realpath(what)))
    more = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [first, *(os.path.abspath(path) for path in more if path)]
    if option == "-c":
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)
    elif option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(what, run_name="__main__")


def end_well() -> None:
    """Ends a process that has come to its end, but takes nothing apart that was imported: that takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # of which an interpreter tells in its own way
    os._exit(0)


if __name__ == "__main__":
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        request = serve(listening)
    if request is not None:
        try:
            run(**request)
        except SystemExit as end:
            if end.code:
                raise
        end_well()
