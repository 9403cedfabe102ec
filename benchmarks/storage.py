"""Measures size and load time of a compressed checkpoint, compared with the dense one and with zstd of the dense one.

    python benchmarks/storage.py --model path/to/pruned

All figures come from one run with alternating rounds. Loading from zstd means unpacking plus a dense load. Without the
`zstandard` package or the `zstd` program, these lines are left out.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from optimum_mwanda.storage.compressed import compress


def weights_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors*"))


def zstd(source: Path, target: Path, level: int | None) -> None:
    """Packs a file if a level is given, and unpacks it otherwise."""
    try:
        import zstandard
    except ImportError:
        action = ["-d"] if level is None else [f"-{level}"]
        subprocess.run(["zstd", "-q", "-f", *action, str(source), "-o", str(target)], check=True)
        return
    with source.open("rb") as read, target.open("wb") as write:
        coder = zstandard.ZstdDecompressor() if level is None else zstandard.ZstdCompressor(level=level)
        coder.copy_stream(read, write)


def has_zstd() -> bool:
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return shutil.which("zstd") is not None
    return True


def load(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder)


def unpack_and_load(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for path in folder.iterdir():
            if path.suffix == ".zst":
                zstd(path, Path(scratch) / path.stem, None)
            else:
                shutil.copy(path, scratch)
        load(Path(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pruned, dense checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", type=int, nargs="*", default=[3], help="zstd levels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    set_verbosity_error()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        ways: dict[str, tuple[Path, Callable[[Path], None]]] = {"dense": (args.model, load)}
        writing: dict[str, float] = {}
        start = time.perf_counter()
        compress(args.model, Path(scratch) / "compressed")
        writing["compressed"] = time.perf_counter() - start
        ways["compressed"] = (Path(scratch) / "compressed", load)
        for level in args.levels if has_zstd() else []:
            folder = Path(scratch) / f"zstd-{level}"
            folder.mkdir()
            start = time.perf_counter()
            for path in args.model.iterdir():
                if path.match("model*.safetensors"):
                    zstd(path, folder / f"{path.name}.zst", level)
                elif path.is_file():
                    shutil.copy(path, folder)
            writing[f"zstd -{level}"] = time.perf_counter() - start
            ways[f"zstd -{level}"] = (folder, unpack_and_load)

        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds + 1):
            for name, (folder, read) in ways.items():
                start = time.perf_counter()
                read(folder)
                seconds[name].append(time.perf_counter() - start)

        dense = weights_size(args.model)
        # The first round warms the file cache.
        rounds = {name: times[1:] for name, times in seconds.items()}
        print("| storage | MB | of dense | write, s | load, s (median) | of dense (median of rounds) |")
        print("|---|---|---|---|---|---|")
        for name, (folder, _) in ways.items():
            ratios = [own / base for own, base in zip(rounds[name], rounds["dense"], strict=True)]
            size = weights_size(folder)
            print(
                f"| {name} | {size / 1e6:.1f} | {size / dense:.3f} | {writing.get(name, 0):.2f} "
                f"| {statistics.median(rounds[name]):.3f} | {statistics.median(ratios):.2f} |"
            )


if __name__ == "__main__":
    main()
