"""The metric of the `evaluate` library, loaded as its users load it."""

import math
import shutil
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import metadata_load
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from optimum_mwanda import evaluate_languages
from tests.conftest import SAMPLE_MODEL

METRIC = Path(__file__).parents[2] / "integrations" / "evaluate" / "multilingual_perplexity"


def test_metric_gives_what_the_library_gives(
    sample_tokenizer: PreTrainedTokenizerBase,
    sample_rows: dict[str, list[dict[str, str]]],
    tmp_path: Path,
) -> None:
    rows = [row for row in sample_rows["evaluation"] if row["language"] in ("en", "fr", "ta")]
    # A copy elsewhere: the folder is pushed as it is, and has to be complete.
    folder = Path(shutil.copytree(METRIC, tmp_path / "space" / METRIC.name))
    metric = evaluate.load(str(folder), cache_dir=str(tmp_path))
    result = metric.compute(
        predictions=[row["text"] for row in rows],
        references=[row["language"] for row in rows],
        model_id=str(SAMPLE_MODEL),
        sequence_length=64,
    )
    model = AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL)
    rows.sort(key=lambda row: (row["language"], row["text"]))  # the metric's own order
    expected = evaluate_languages(model, sample_tokenizer, rows, sequence_length=64, progress=False).scores
    assert result["languages"].keys() == expected.keys()
    for language, score in expected.items():
        assert result["languages"][language]["nll"] == pytest.approx(score.nll, abs=1e-6)
        assert result["languages"][language]["standard_errors"] == pytest.approx(score.standard_errors, rel=1e-4)
    assert math.isclose(result["mean_nll"], sum(score.nll for score in expected.values()) / 3, rel_tol=1e-6)
    assert result["worst_language"] == max(expected, key=lambda name: expected[name].bits_per_byte or 0.0)


def test_order_of_the_texts_changes_nothing(sample_rows: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
    metric = evaluate.load(str(METRIC), cache_dir=str(tmp_path))
    rows = [row for row in sample_rows["evaluation"] if row["language"] == "fr"]
    found = [
        metric.compute(
            predictions=[row["text"] for row in order],
            references=[row["language"] for row in order],
            model_id=str(SAMPLE_MODEL),
            device="cpu",
        )
        for order in (rows, rows[::-1])
    ]
    assert found[0] == found[1]
    assert set(found[0]["languages"]["fr"]) == {
        "tokens",
        "nll",
        "bytes",
        "perplexity",
        "bits_per_byte",
        "standard_errors",
    }


def test_folder_is_a_space_that_the_hub_can_start() -> None:
    settings = metadata_load(METRIC / "README.md")
    assert settings is not None
    assert (settings["sdk"], settings["tags"]) == ("gradio", ["evaluate", "metric"])
    compile((METRIC / settings["app_file"]).read_text(encoding="utf-8"), settings["app_file"], "exec")
    assert "optimum-mwanda" in (METRIC / "requirements.txt").read_text(encoding="utf-8")
