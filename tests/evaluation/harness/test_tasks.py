"""Task files for lm-evaluation-harness, as they are written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from optimum_mwanda.evaluation.harness.tasks import (
    write_language_tasks,
    write_xcopa_tasks,
    write_xwinograd_tasks,
)

TEXTS = {"sw": ["habari", "", "dunia nzima"], "en": [f"text {number}" for number in range(9)], "zh-Hant": ["你好"]}


def documents_of(folder: Path, task: str) -> list[str]:
    config = yaml.safe_load((folder / f"{task}.yaml").read_text(encoding="utf-8"))
    lines = Path(config["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_every_language_becomes_a_task_and_counts_equally(tmp_path: Path) -> None:
    names = write_language_tasks(TEXTS, tmp_path, group="held_out")
    assert names == ["held_out", "held_out_en", "held_out_sw", "held_out_zh-Hant"]
    group = yaml.safe_load((tmp_path / "held_out" / "_group.yaml").read_text(encoding="utf-8"))
    assert group["task"] == names[1:]
    assert [each["metric"] for each in group["aggregate_metric_list"]] == ["bits_per_byte", "byte_perplexity"]
    assert not any(each["weight_by_size"] for each in group["aggregate_metric_list"])
    assert sorted(documents_of(tmp_path / "held_out", "held_out_sw")) == ["dunia nzima", "habari"]


def test_documents_are_limited_in_number_and_length(tmp_path: Path) -> None:
    options: dict[str, Any] = {"documents_per_language": 3, "characters_per_document": 5}
    write_language_tasks(TEXTS, tmp_path / "a", languages=["en"], **options)
    write_language_tasks(TEXTS, tmp_path / "b", languages=["en"], **options)
    write_language_tasks(TEXTS, tmp_path / "c", languages=["en"], documents_per_language=3, seed=1)
    first, same, other = (
        documents_of(tmp_path / name / "mwanda_bits_per_byte", "mwanda_bits_per_byte_en") for name in "abc"
    )
    assert first == same == ["text "] * 3
    assert len(set(other)) == 3


def test_language_that_is_named_twice_gives_every_document_once(tmp_path: Path) -> None:
    write_language_tasks(TEXTS, tmp_path, group="g", languages=["sw", "sw"])
    assert sorted(documents_of(tmp_path / "g", "g_sw")) == ["dunia nzima", "habari"]


def test_labels_of_a_dataset_become_language_codes(tmp_path: Path) -> None:
    features = Features({"lang": ClassLabel(names=["en", "sw"]), "body": Value("string")})
    dataset = Dataset.from_dict({"lang": [1, 0], "body": ["habari", "hello"]}, features=features)
    names = write_language_tasks(dataset, tmp_path, group="g", language_column="lang", text_column="body")
    assert names == ["g", "g_en", "g_sw"]
    assert documents_of(tmp_path / "g", "g_sw") == ["habari"]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ({"sw": ["  ", ""]}, {}, "no text in 'sw'"),
        ([], {}, "There is no text"),
        ({"a b": ["x"], "a_b": ["y"]}, {}, "differ only in characters"),
        (TEXTS, {"documents_per_language": 0}, "documents_per_language=0 must be at least 1"),
        (TEXTS, {"characters_per_document": 0}, "characters_per_document=0 must be at least 1"),
        (TEXTS, {"languages": ["xx"]}, "'xx' was asked for"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(
    tmp_path: Path, texts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_language_tasks(texts, tmp_path / "tasks", **options)
    assert not (tmp_path / "tasks").exists()


def test_text_that_is_no_string_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds a int for language 'en'"):
        write_language_tasks([{"language": "en", "text": 5}], tmp_path)


def test_tasks_of_an_earlier_run_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    write_language_tasks(TEXTS, tmp_path)
    with pytest.raises(FileExistsError, match="is not empty"):
        write_language_tasks({"en": ["other"]}, tmp_path)


def test_folder_without_the_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file test\.<language>\.jsonl"):
        write_xcopa_tasks(tmp_path, tmp_path / "tasks")
    with pytest.raises(FileNotFoundError):
        write_xwinograd_tasks(tmp_path, tmp_path / "tasks")


def test_damaged_row_of_xwinograd_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.tsv").write_text("en\toriginal\t?\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Row 1 of .*dataset\.tsv is not a row of XWinograd"):
        write_xwinograd_tasks(tmp_path, tmp_path / "tasks")
