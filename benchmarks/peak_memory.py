"""The peak of a process's memory, as every benchmark counts it."""

from pathlib import Path


def peak_memory() -> int:
    """Most bytes that were resident in this process, as the operating system counts them.

    Not `ru_maxrss`, which a new process takes over from the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
