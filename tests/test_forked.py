"""Processes that a server forks begin, end and are ended as others."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import python

SLEEPS = """
import os, sys, time
try:
    print(os.getpid(), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
"""


def run(*words: str, **options: object) -> tuple[int, str, str]:
    done = subprocess.run([python(), *words], capture_output=True, text=True, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit('an end')",
        "raise SystemExit",
        "print('no line', end='')",
        "import atexit, threading as t; atexit.register(print, 'last'); t.Timer(0.2, print, ['late']).start(); exit(0)",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_ends_are_those_of_an_interpreter(code: str) -> None:
    expected = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run("-c", code) == (expected.returncode, expected.stdout, expected.stderr)


def test_errors_have_a_traceback() -> None:
    code, out, err = run("-c", "raise ValueError('wrong')")
    assert (code, out) == (1, "")
    assert err.endswith("ValueError: wrong\n")


def test_words_streams_folder_and_environment_are_those_that_were_given(tmp_path: Path) -> None:
    text = "import os, sys; print(sys.argv, input(), os.getcwd(), [*os.environ], __name__, sys.path[:2])"
    (tmp_path / "module.py").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    options = {"input": "read\n", "cwd": tmp_path, "env": {"PYTHONPATH": "elsewhere"}}
    for words in (("-c", text, "a"), ("-m", "module", "a"), ("module.py", "a"), ("-u", "-m", "module", "a")):
        expected = subprocess.run([sys.executable, *words], capture_output=True, text=True, **options).stdout
        assert "'a'] read" in expected
        assert run(*words, **options)[:2] == (0, expected)


def test_nothing_that_tests_may_be_about_is_imported() -> None:
    names = ("transformers", "huggingface_hub", "datasets", "safetensors", "optimum", "optimum_mwanda", "tests")
    assert run("-c", f"import sys; print([name for name in {names} if name in sys.modules])")[1] == "[]\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_reach_the_process(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [python(), "-c", SLEEPS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stdout.read() == b""  # it is closed only when the process itself has ended
