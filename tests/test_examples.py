"""The examples, run as a newcomer runs them, and the sample that they stand on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import EXAMPLES, SAMPLE_DATA, SAMPLE_MODEL
from tests.forked import python

LANGUAGES = {"en", "es", "fr", "de", "pt", "ru", "uk", "zh", "ja", "ko", "tr", "hi", "ta", "vi"}
ROOT = EXAMPLES.parent


def run(*arguments: str, interpreter: str | None = None) -> str:
    words = [interpreter or python(), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo_compares_languages_and_writes_a_checkpoint_that_plain_transformers_reads(tmp_path: Path) -> None:
    printed = run("examples/01_prune_sample.py", "--output", str(tmp_path / "out"))
    rows = re.findall(r"^\| (\w\w) +\| +(yes|no) \|", printed, flags=re.MULTILINE)
    assert {language for language, _ in rows} == LANGUAGES
    assert {language for language, calibrated in rows if calibrated == "no"} == {"pt", "uk", "vi"}
    assert "**worst**" in printed
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert 0.4 < (weight == 0).float().mean() < 0.8
    prompt = AutoTokenizer.from_pretrained(tmp_path / "out")("The file", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


def test_sample_model_is_small_multilingual_and_described() -> None:
    assert (SAMPLE_MODEL / "model.safetensors").stat().st_size <= 6_000_000
    card = (SAMPLE_MODEL / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    for language in LANGUAGES:
        assert re.search(rf"^\| {language} +\|", card, flags=re.MULTILINE), language


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_sample_sentences_are_parallel(part: str) -> None:
    rows = [json.loads(line) for line in (SAMPLE_DATA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
    for number in {row["id"] for row in rows}:
        assert {row["language"] for row in rows if row["id"] == number} == LANGUAGES


def test_no_sentence_is_in_both_parts() -> None:
    texts = [
        {json.loads(line)["text"] for line in (SAMPLE_DATA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()}
        for part in ("calibration", "evaluation")
    ]
    assert not texts[0] & texts[1]


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, optimum_mwanda, optimum_mwanda.configuration as c; c.MWandaConfig(); "
    code += "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert run("-c", code, interpreter=sys.executable).strip() == "set()"


def test_every_public_name_can_be_imported() -> None:
    run(
        "-c",
        "import optimum_mwanda as o; [getattr(o, name) for name in o.__all__]; assert set(o.__all__) <= set(dir(o))",
    )


def test_demo_installs_what_it_runs_with_and_no_more() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make on this machine")
    words = [make, "--dry-run", "demo", "VENV=no-such-folder"]
    plan = subprocess.run(words, cwd=EXAMPLES.parent, capture_output=True, text=True, check=True).stdout
    assert "pip install" in plan
    assert "tests" not in plan
    assert "quality" not in plan
