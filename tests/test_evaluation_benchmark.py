"""The benchmark of the memory that an evaluation takes, on the sample in small."""

import subprocess
import sys

from tests.conftest import EXAMPLES, SAMPLE_DATA, SAMPLE_MODEL


def test_memory_is_counted_beside_that_of_the_loaded_models() -> None:
    words = ["--test", str(SAMPLE_DATA / "evaluation.jsonl"), "--languages", "en", "--threads", "1"]
    words += ["--windows", "4x32", "--tokens", "64"]
    script = [sys.executable, str(EXAMPLES.parent / "benchmarks" / "evaluation.py"), str(SAMPLE_MODEL)]
    done = subprocess.run([*script, *words], capture_output=True, text=True, check=True)
    _, _, *lines = done.stdout.splitlines()
    dense, both = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert dense[:2] == ["4 x 32", "dense"]
    assert both[:2] == ["4 x 32", "compare"]
    assert 120 < int(dense[2]) < 128  # four windows, of which the first one's first token is not predicted
    assert int(both[2]) == 2 * int(dense[2])
    loaded, above = int(dense[4]), int(dense[5])
    assert 0 <= above < 200 < loaded
