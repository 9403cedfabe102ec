"""Integrations, run as their users run them."""

import math
from pathlib import Path

import evaluate
import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from optimum_mwanda import evaluate_languages
from tests.conftest import SAMPLE_MODEL

INTEGRATIONS = Path(__file__).parents[1] / "integrations"


def test_evaluate_metric_gives_what_the_library_gives(
    sample_tokenizer: PreTrainedTokenizerBase,
    sample_rows: dict[str, list[dict[str, str]]],
    tmp_path: Path,
) -> None:
    rows = [row for row in sample_rows["evaluation"] if row["language"] in ("en", "fr", "ta")]
    metric = evaluate.load(str(INTEGRATIONS / "evaluate" / "multilingual_perplexity"), cache_dir=str(tmp_path))
    result = metric.compute(
        predictions=[row["text"] for row in rows],
        references=[row["language"] for row in rows],
        model_id=str(SAMPLE_MODEL),
        sequence_length=64,
    )
    model = AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL)
    expected = evaluate_languages(model, sample_tokenizer, rows, sequence_length=64, progress=False).scores
    assert result["languages"].keys() == expected.keys()
    for language, score in expected.items():
        assert result["languages"][language]["nll"] == pytest.approx(score.nll, abs=1e-6)
    assert math.isclose(result["mean_nll"], sum(score.nll for score in expected.values()) / 3, rel_tol=1e-6)
    assert result["worst_language"] == max(expected, key=lambda name: expected[name].bits_per_byte or 0.0)
