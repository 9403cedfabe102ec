"""Generated tasks, run by lm-evaluation-harness itself on the sample model, dense and pruned."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig, MWandaPruner, evaluate_languages
from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.evaluation.harness.results import HarnessReport
from optimum_mwanda.evaluation.harness.tasks import (
    write_language_tasks,
    write_xcopa_tasks,
    write_xwinograd_tasks,
)
from tests.conftest import SAMPLE_DATA, SAMPLE_MODEL
from tests.forked import python

INTEGRATION = Path(__file__).parents[2] / "integrations" / "lm_eval"
LANGUAGES = ("en", "hi", "ja")
# A harness that fills templates, parses lists or strips would change these.
AWKWARD = ["{{ 6 * 7 }} {% if x %}", "[1, 2]", "42", "  Ends with a line break.\n"]
XCOPA = [
    {"premise": "The item was wrapped.", "choice1": "It was fragile.", "choice2": "It was small.", "question": "cause"},
    {"premise": "I emptied my pockets.", "choice1": "I found a ticket.", "choice2": "I ran.", "question": "effect"},
    {"premise": "The loop ended.", "choice1": "The list was empty.", "choice2": "The sun rose.", "question": "cause"},
]
XWINOGRAD = [
    ("The cup does not fit into the bag because it is large.", "it", {"The cup": True, "the bag": False}),
    ("The cup does not fit into the bag because it is small.", "it", {"The cup": False, "the bag": True}),
]


def xwinograd_row(language: str, sentence: str, pronoun: str, candidates: dict[str, bool]) -> str:
    tokens = [*sentence.removesuffix(".").split(), "."]
    at = tokens.index(pronoun)
    found = [[text, [0, 1], text.split(), right] for text, right in candidates.items()]
    cells = [tokens, [pronoun, [at, at + 1], [pronoun]], found]
    return "\t".join([language, "original", "?", sentence, *map(json.dumps, cells)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lm_eval")


@pytest.fixture(scope="module")
def documents(sample_rows: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    rows = [row for language in LANGUAGES for row in sample_rows["evaluation"] if row["language"] == language]
    return rows + [{"language": "en", "text": text} for text in AWKWARD]


@pytest.fixture(scope="module")
def tasks(folder: Path, documents: list[dict[str, str]]) -> Path:
    """Tasks of all three kinds."""
    output, data = folder / "tasks", folder / "data"
    data.mkdir()
    for language in ("sw", "it"):
        lines = [json.dumps(row | {"label": index % 2}) for index, row in enumerate(XCOPA)]
        (data / f"test.{language}.jsonl").write_text("\n".join(lines))
    rows = [xwinograd_row(language, *row) for language in ("en", "jp") for row in XWINOGRAD]
    (data / "dataset.tsv").write_text("\n".join(rows) + "\n")
    write_language_tasks(documents, output)
    write_xcopa_tasks(data, output)
    write_xwinograd_tasks(data, output)
    return output


@pytest.fixture(scope="module")
def models(folder: Path, sample_rows: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """Paths of the sample model and of the same model, pruned."""
    model = AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_MODEL)
    config = MWandaConfig(sparsity=0.6, sequence_length=64, samples_per_language=2)
    MWandaPruner(config, progress=False).prune(model, sample_rows["calibration"], tokenizer).save_pretrained(
        folder / "pruned"
    )
    tokenizer.save_pretrained(folder / "pruned")
    return {"dense": str(SAMPLE_MODEL), "pruned": str(folder / "pruned")}


@pytest.fixture(scope="module")
def results(folder: Path, tasks: Path, models: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the harness returns for each model; its files go to a folder `<model>` each."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found: dict[str, dict[str, Any]] = {}
    for name, path in models.items():
        found[name] = {}
        for group, options in {
            "mwanda_bits_per_byte": ",add_bos_token=False",
            "xcopa_local": "",
            "xwinograd_local": "",
        }.items():
            tracker = EvaluationTracker(output_path=str(folder / name))
            found[name][group] = lm_eval.simple_evaluate(
                model="hf",
                model_args=f"pretrained={path},dtype=float32{options}",
                tasks=[group],
                task_manager=manager,
                device="cpu",
                batch_size=4,
                bootstrap_iters=0 if group == "mwanda_bits_per_byte" else 100,
                evaluation_tracker=tracker,
            )
            tracker.save_results_aggregated(dict(found[name][group]))
    return found


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_bits_per_byte_is_that_of_the_library(
    name: str, results: dict[str, Any], models: dict[str, str], documents: list[dict[str, str]]
) -> None:
    """The harness reads each document by itself, so here each document is given to the library as a language."""
    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32)
    texts = {f"{row['language']}/{index}": [row["text"]] for index, row in enumerate(documents)}
    scores = evaluate_languages(model, None, texts, sequence_length=128, progress=False).scores
    found = results[name]["mwanda_bits_per_byte"]["results"]
    expected = {}
    for language in LANGUAGES:
        parts = [score for key, score in scores.items() if key.partition("/")[0] == language]
        nats = sum(part.nll * part.tokens for part in parts)
        expected[language] = nats / math.log(2) / sum(part.bytes or 0 for part in parts)
        values = found[f"mwanda_bits_per_byte_{language}"]
        assert values["sample_len"] == len(parts)
        assert values["bits_per_byte,none"] == pytest.approx(expected[language], rel=1e-4)
        assert values["byte_perplexity,none"] == pytest.approx(2 ** expected[language], rel=1e-4)
    group = results[name]["mwanda_bits_per_byte"]["groups"]["mwanda_bits_per_byte"]
    assert group["bits_per_byte,none"] == pytest.approx(sum(expected.values()) / 3, rel=1e-4)


def test_pruning_shows_in_every_language(results: dict[str, Any]) -> None:
    dense, pruned = (results[name]["mwanda_bits_per_byte"]["results"] for name in ("dense", "pruned"))
    for language in LANGUAGES:
        task = f"mwanda_bits_per_byte_{language}"
        assert pruned[task]["bits_per_byte,none"] > dense[task]["bits_per_byte,none"]


def test_local_xcopa_asks_what_the_harness_asks(results: dict[str, Any]) -> None:
    first = results["dense"]["xcopa_local"]["samples"]["xcopa_local_sw"][0]
    assert [tuple(pair) for pair in first["arguments"]] == [
        ("The item was wrapped kwa sababu", " it was fragile."),
        ("The item was wrapped kwa sababu", " it was small."),
    ]
    assert first["target"] in (0, "0")


def test_local_xwinograd_puts_the_candidates_in_place_of_the_pronoun(results: dict[str, Any]) -> None:
    samples = results["dense"]["xwinograd_local"]["samples"]["xwinograd_local_en"]
    for sample, adjective, right in zip(samples, ("large", "small"), (0, 1), strict=True):
        asked = [tuple(pair) for pair in sample["arguments"]]
        assert asked == [
            ("The cup does not fit into the bag because The cup", f" is {adjective}."),
            ("The cup does not fit into the bag because the bag", f" is {adjective}."),
        ]
        likelihoods = [response[0] for response in sample["filtered_resps"]]
        assert sample["acc"] == float(likelihoods.index(max(likelihoods)) == right)


def test_files_of_a_run_become_a_comparison_per_language(
    folder: Path, results: dict[str, Any], models: dict[str, str]
) -> None:
    dense, pruned = (HarnessReport.from_files(folder / name) for name in ("dense", "pruned"))
    assert (dense.model, pruned.model) == (models["dense"], models["pruned"])
    assert dense.languages == ("en", "hi", "it", "ja", "sw")  # jp of XWinograd is Japanese
    score = pruned.by_key()["mwanda_bits_per_byte", "bits_per_byte", "hi"]
    task = results["pruned"]["mwanda_bits_per_byte"]["results"]["mwanda_bits_per_byte_hi"]
    assert (score.value, score.stderr) == (task["bits_per_byte,none"], None)
    assert score.higher_is_better is False
    xcopa = dense.by_key()["xcopa_local", "acc", "sw"]
    share = xcopa.value
    assert xcopa.samples == len(XCOPA)
    assert xcopa.stderr == pytest.approx(math.sqrt(share * (1 - share) / (len(XCOPA) - 1)))
    assert xcopa.higher_is_better
    comparison = HarnessComparison(dense, {"pruned": pruned})
    assert comparison.change("pruned", score.key) > 0
    found = HarnessComparison.from_dict(json.loads(json.dumps(comparison.to_dict())))
    assert found.dense == dataclasses.replace(dense, model=Path(dense.model).name)
    assert found.pruned == {"pruned": dataclasses.replace(pruned, model=Path(pruned.model).name)}


def test_suite_names_benchmarks_that_the_harness_has() -> None:
    suite = yaml.safe_load((INTEGRATION / "mwanda_multilingual.yaml").read_text(encoding="utf-8"))
    home = Path(lm_eval.__file__).parent / "tasks"
    folders = [home / name.replace("pawsx", "paws-x") for name in suite["task"]]
    index = TaskManager(include_path=[INTEGRATION, *folders], include_defaults=False).task_index
    assert "mwanda_multilingual" in index
    for name in suite["task"]:
        entry = index[name]
        members = entry.tags or yaml.safe_load(Path(entry.yaml_path).read_text(encoding="utf-8"))["task"]
        assert len(members) >= 5
        assert index.keys() >= set(members)


def test_script_makes_tasks_of_a_file_that_the_harness_can_load(tmp_path: Path) -> None:
    command = [
        *(python(), str(INTEGRATION / "make_tasks.py"), "bits-per-byte"),
        *("--dataset", str(SAMPLE_DATA / "evaluation.jsonl"), "--languages", "en", "ru", "--documents", "2"),
        *("--characters", "20", "--output", str(tmp_path / "tasks")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Wrote mwanda_bits_per_byte: mwanda_bits_per_byte_en, mwanda_bits_per_byte_ru.\n"
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    loaded = manager.load("mwanda_bits_per_byte")["tasks"]
    texts = [
        loaded["mwanda_bits_per_byte_ru"].doc_to_target(doc) for doc in loaded["mwanda_bits_per_byte_ru"].eval_docs
    ]
    assert [len(text) for text in texts] == [20, 20]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bits-per-byte", "--dataset", "nope.jsonl"), "There is no file or folder 'nope.jsonl'"),
        (("bits-per-byte", "--dataset", "en.txt", "--languages", "xx"), "Language 'xx' was asked for"),
        (("bits-per-byte", "--dataset", "en.txt", "--group", "taken"), "taken is not empty"),
        (("xwinograd", "."), "dataset.tsv"),
    ],
)
def test_script_ends_with_one_line_where_the_user_erred(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "en.txt").write_text("A line.\n")
    (tmp_path / "tasks" / "taken").mkdir(parents=True)
    (tmp_path / "tasks" / "taken" / "_group.yaml").touch()
    command = [python(), str(INTEGRATION / "make_tasks.py"), *words, "--output", "tasks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("make_tasks.py: error: ")
    assert message in line
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["taken"]
