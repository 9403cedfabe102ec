"""Scores of lm-evaluation-harness in a model card."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from optimum_mwanda.commands.saving import own_harness
from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.evaluation.harness.results import HarnessReport, HarnessScore
from optimum_mwanda.sharing.card_harness import HARNESS_TASK_NAME
from optimum_mwanda.sharing.model_card import create_card, save_card
from optimum_mwanda.sharing.names import HARNESS_NAME

from ..hub_server import metadata_errors
from .test_card import HOSTILE, make_record


def make_harness(accuracy: float, language: str = "sw", dataset: str = "cambridgeltl/xcopa") -> HarnessReport:
    scores = [
        HarnessScore("xcopa", language, "acc", accuracy, 0.02, 500, True, dataset, "test"),
        HarnessScore("held_out", "en", "bits_per_byte", 1.0 / accuracy, None, 20, False, "json", "test"),
        HarnessScore("held_out", "hi", "bits_per_byte", 2.0, None, 20, False, "json", "test"),
    ]
    return HarnessReport(tuple(scores), "model", "0.4.13")


COMPARISON = HarnessComparison(make_harness(0.75), {"any": make_harness(0.5)})


def test_scores_are_in_the_text_and_in_the_metadata() -> None:
    card = create_card(make_record(), harness=COMPARISON, repo_id="me/model")
    section = card.text.partition("### Benchmarks per language")[2].partition("###")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    assert ["`xcopa`", "`acc`", "`sw`", "500", "0.7500 ± 0.0200", "0.5000 ± 0.0200", "-0.2500"] in rows
    assert ["`held_out`", "`bits_per_byte`", "**worst**", "", "", "`en`", "+0.6667"] in rows
    read = ModelCard(str(card)).data.eval_results  # as the Hub reads it
    results = {(each.dataset_name, each.dataset_config): each for each in read}
    assert len(results) == len(read) == 3
    xcopa = results["xcopa", "sw"]
    assert (xcopa.dataset_type, xcopa.dataset_split, xcopa.metric_type) == ("cambridgeltl/xcopa", "test", "acc")
    assert (xcopa.metric_value, xcopa.source_name) == (0.5, "lm-evaluation-harness 0.4.13")
    assert results["held_out", "en"].dataset_type == "held_out"
    assert {"sw", "hi"} <= set(card.data.language)
    assert metadata_errors(str(card)) == []


def test_model_with_scores_counts_as_evaluated() -> None:
    assert "was not evaluated" not in create_card(make_record(), harness=COMPARISON).text
    assert "was not evaluated" in create_card(make_record()).text


def test_card_without_scores_says_nothing_of_benchmarks() -> None:
    assert "Benchmarks per language" not in create_card(make_record()).text


def test_update_replaces_the_scores_and_keeps_those_of_others() -> None:
    first = create_card(make_record(), harness=COMPARISON)
    foreign = str(first).replace(HARNESS_TASK_NAME, "Somebody else's", 1)
    other = HarnessComparison(make_harness(0.75), {"any": make_harness(0.25)})
    results = create_card(make_record(), harness=other, existing=foreign).data.eval_results
    assert [each.metric_value for each in results if each.task_name == HARNESS_TASK_NAME] == [0.25, 4.0, 2.0]
    assert len([each for each in results if each.task_name == "Somebody else's"]) >= 1


@pytest.mark.parametrize("text", HOSTILE)
def test_no_string_of_the_results_acts_as_markdown(text: str) -> None:
    harness = HarnessComparison(make_harness(0.5, text, text), {"any": make_harness(0.4, text, text)})
    card = create_card(make_record(), harness=harness)
    plain = create_card(make_record(), harness=COMPARISON)
    lines = [line for line in card.text.splitlines() if not line.startswith("|")]
    assert lines == [line for line in plain.text.splitlines() if not line.startswith("|")]
    for line in card.text.partition("### Benchmarks per language")[2].partition("###")[0].splitlines():
        assert "<" not in "".join(line.split("`")[::2])


def test_comparison_of_several_models_is_refused() -> None:
    several = HarnessComparison(make_harness(0.75), {"a": make_harness(0.5), "b": make_harness(0.5)})
    with pytest.raises(ValueError, match=r"compare 2 pruned models \(a, b\)"):
        create_card(make_record(), harness=several)


def test_folder_keeps_its_scores_for_the_next_card(tmp_path: Path) -> None:
    assert own_harness(tmp_path) is None
    (tmp_path / HARNESS_NAME).write_text(json.dumps(COMPARISON.to_dict()), encoding="utf-8")
    assert own_harness(tmp_path) == COMPARISON
    assert "0.5000 ± 0.0200" in save_card(make_record(), tmp_path, harness=own_harness(tmp_path)).read_text("utf-8")
