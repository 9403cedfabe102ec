import copy
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerCallback

from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.evaluation.report import LanguageScore, PerplexityComparison, PerplexityReport
from optimum_mwanda.pruner import MWandaPruner
from optimum_mwanda.record.schema import SparsityRecord
from optimum_mwanda.record.verification import verify_sparsity
from optimum_mwanda.registry import ALLOCATIONS
from optimum_mwanda.reporting.plots import plot_block_sparsity
from optimum_mwanda.sharing.card_text import clean
from optimum_mwanda.sharing.card_update import BEGIN, END
from optimum_mwanda.sharing.languages import hub_language
from optimum_mwanda.sharing.model_card import create_card, save_card

from ..conftest import make_model, make_rows
from ..hub_server import metadata_errors
from ..storage.families import make_family

HEADINGS = [
    "# `base-pruned`",
    "## Pruned with optimum-mwanda",
    "### How it was pruned",
    "### Sparsity of each block",
    "### Perplexity per language",
    "### What pruning does not give you",
    "### How to load it",
    "### Fine-tuning without losing the zeros",
    "### How to reproduce it",
    "### Citation",
]
HOSTILE = (
    "<script>alert(1)</script>",
    "`</code><img src=x onerror=alert(1)>",
    "{{ 7 * 191 }}{% for x in y %}",
    "[click](javascript:alert(1))",
    "| a | b |",
    f"x\n{END}\n",
    "x\n```\n<b>out</b>\n",
    "x\n---\nlicense: evil\n---\n",
    "'; rm -rf ~; '",
    "\u202eright\u2028# Heading",
)


def make_record(**settings: Any) -> dict[str, Any]:
    """A record of two blocks with one matrix each."""
    return {
        "schema": 1,
        "library_version": "0.1.0",
        "settings": MWandaConfig(**settings).to_dict(),
        "pattern": settings.get("pattern", "unstructured"),
        "target_sparsity": 0.5,
        "achieved_sparsity": 0.5,
        "blocks": {"names": ["model.layers.0", "model.layers.1"], "sparsity": [0.625, 0.375]},
        "matrices": {"mlp.up_proj": {"shape": [4, 4], "zeros": [10, 6]}},
        "languages": {"en": {"tokens": 64, "weight": 0.5}, "swh_Latn": {"tokens": 64, "weight": 0.5}},
        "dataset_fingerprints": ["a" * 64],
        "model": "base",
        "model_fingerprint": "b" * 64,
        "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "history": [],
    }


def make_report(pruned: dict[str, float], seen: list[str] | None = None) -> PerplexityComparison:
    """Every language has a dense perplexity of e² and is `pruned` nats worse."""

    def report(extra: dict[str, float]) -> PerplexityReport:
        return PerplexityReport(
            {name: LanguageScore(name, 100, 2 + extra[name], 400) for name in pruned}, model="any", sequence_length=32
        )

    return PerplexityComparison(report(dict.fromkeys(pruned, 0.0)), {"mine": report(pruned)}, seen)


REPORT = make_report({"en": 0.1, "swh_Latn": 0.2, "zh-Hant": 0.3})


def test_long_tables_are_folded_and_short_ones_are_not() -> None:
    names = [f"l{index:03d}" for index in range(100)]
    record = make_record() | {"languages": {name: {"tokens": 64, "weight": 0.01} for name in names}}
    card = create_card(record, report=make_report(dict.fromkeys(names, 0.1)))
    for heading, rows in (("How it was pruned", 100), ("Perplexity per language", 105)):
        (found,) = re.findall(
            r"<details>\n<summary>(.*)</summary>\n\n(.*?)\n\n</details>", section(card, heading), re.S
        )
        assert found[0] == f"Show the {rows} rows"
        assert all(name in found[1] for name in names)
    assert "<details>" not in create_card(make_record(), report=REPORT).text


def test_text_that_the_model_wrote_is_named_as_such_and_is_not_a_language() -> None:
    languages = {"en": {"tokens": 64, "weight": 0.2}, "self": {"tokens": 64, "weight": 0.8}}
    card = create_card(make_record() | {"languages": languages}, report=REPORT)
    assert card.data.language == ["en", "swh", "zh"]  # what was measured counts too
    pruned = section(card, "How it was pruned")
    assert "| `self`   |     64 | 80.0 % |" in pruned
    assert "`self` is not a language: the dense model wrote this text itself" in pruned
    assert "--dataset calibration.jsonl self.jsonl" in card.text
    assert "unless the dense model wrote in them by itself." in section(card, "Perplexity per language")
    assert "`self-`" not in pruned
    begun = {"en": {"tokens": 64, "weight": 0.2}, "self-sw": {"tokens": 64, "weight": 0.8}}
    card = create_card(make_record() | {"languages": begun}, report=REPORT)
    assert card.data.language == ["en", "swh", "zh"]
    assert "`self-` before a language means that the dense model wrote this text itself" in card.text
    assert "is not a language" not in card.text
    assert "unless the dense model wrote in them by itself." in section(card, "Perplexity per language")
    other = create_card(make_record(), report=REPORT).text
    assert "wrote" not in other
    assert 'Languages marked "no" were not used for calibration.\n' in other
    assert hub_language("self") is None
    assert hub_language("self-sw") is None


def headings(text: str) -> list[str]:
    return re.findall("^#+ .*$", without_fences(text), re.MULTILINE)


def without_fences(text: str) -> str:
    return re.sub("^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(card: ModelCard, heading: str) -> str:
    return str(card.text).split(f"### {heading}\n")[1].split("\n### ")[0]


def code(card: ModelCard, containing: str) -> str:
    (block,) = (block for block in re.findall("^```python\n(.*?)^```$", card.text, re.M | re.S) if containing in block)
    return str(block)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| --")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_headings_stand_in_order() -> None:
    assert headings(create_card(make_record(), report=REPORT).text) == HEADINGS
    assert headings(create_card(make_record()).text) == HEADINGS


def test_table_has_dense_and_pruned_perplexity_with_seen_unseen_and_worst() -> None:
    assert rows(section(create_card(make_record(), report=REPORT), "Perplexity per language")) == [
        ["language", "calibrated", "dense", "pruned", "×"],
        ["`en`", "yes", "7.39", "8.17", "1.105"],
        ["`swh_Latn`", "yes", "7.39", "9.03", "1.221"],
        ["`zh-Hant`", "no", "7.39", "9.97", "1.350"],
        ["**mean**", "", "", "", "1.221"],
        ["**seen**", "", "", "", "1.162"],
        ["**unseen**", "", "", "", "1.350"],
        ["**worst**", "", "", "`zh-Hant`", "1.350"],
        ["**best**", "", "", "`en`", "1.105"],
        ["**spread**", "", "", "", "1.085"],
    ]


@pytest.mark.parametrize("seen", [["en"], ["en", "swh_Latn", "tr"], []])
def test_report_with_other_seen_languages_than_the_record_is_refused(seen: list[str]) -> None:
    with pytest.raises(ValueError, match=r"record of the model 'en', 'swh_Latn': leave `seen` out"):
        create_card(make_record(), report=make_report({"en": 0.1, "sw": 0.2}, seen=seen))


def test_seen_languages_of_the_report_may_be_those_of_the_record() -> None:
    card = create_card(make_record(), report=make_report({"en": 0.1, "sw": 0.2}, seen=["swh_Latn", "en"]))
    assert [row[:2] for row in rows(section(card, "Perplexity per language"))[1:3]] == [["`en`", "yes"], ["`sw`", "no"]]


def test_results_are_in_the_metadata_one_entry_per_language() -> None:
    data = create_card(make_record(), report=REPORT).data
    figures = {(result.dataset_config, result.metric_type): result.metric_value for result in data.eval_results}
    assert figures["en", "perplexity"] == pytest.approx(8.1662)
    assert figures["zh-Hant", "bits_per_byte"] == pytest.approx(0.8295)
    assert len(figures) == 6


def test_result_that_is_no_number_is_left_out_of_the_metadata() -> None:
    card = create_card(make_record(), report=make_report({"en": float("nan"), "sw": 0.1}))
    assert {result.dataset_config for result in card.data.eval_results} == {"sw"}


def test_metadata_is_what_the_hub_accepts() -> None:
    card = create_card(make_record() | {"model": "acme/base"}, report=REPORT, repo_id="me/small")
    assert metadata_errors(str(card)) == []
    data = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert data.language == ["en", "swh", "zh"]
    assert (data.base_model, data.base_model_relation) == ("acme/base", "finetune")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"mwanda", "pruned", "sparse"} <= set(data.tags)
    assert data.model_name == "small"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("eng", "en"),
        ("eng_Latn", "en"),
        ("zh-Hant", "zh"),
        ("pt_BR", "pt"),
        ("no", "no"),
        ("ceb_Latn", "ceb"),
        ("yue", "yue"),
        ("jp", None),
        ("English", None),
        ("xx", None),
        ("", None),
    ],
)
def test_language_codes_become_those_that_the_hub_knows(code: str, expected: str | None) -> None:
    assert hub_language(code) == expected


def test_language_without_a_hub_code_stays_in_the_table() -> None:
    card = create_card(make_record(), report=make_report({"en": 0.1, "jp": 0.2}))
    assert card.data.language == ["en", "swh"]
    assert "| `jp`" in card.text


def test_norwegian_stays_a_string_in_yaml() -> None:
    card = create_card(make_record(), report=make_report({"no": 0.1}))
    assert yaml.safe_load(card.data.to_yaml())["language"] == ["en", "no", "swh"]


def test_card_of_a_model_without_evaluation_says_so() -> None:
    card = create_card(make_record())
    assert "**This model was not evaluated when this card was written.**" in section(card, "Perplexity per language")
    assert card.data.eval_results is None
    assert "model-index" not in card.data.to_yaml()


def test_local_base_model_is_named_in_the_text_and_not_in_the_metadata() -> None:
    card = create_card(make_record())
    assert card.data.base_model is None
    assert "This is `base` with 50.0 %" in card.text
    assert create_card(make_record(), base_model="acme/base").data.base_model == "acme/base"
    with pytest.raises(ValueError, match="is not a repository id"):
        create_card(make_record(), base_model="no such](thing)")
    assert create_card(make_record() | {"model": "--overwrite/x"}).data.base_model is None


def test_licence_comes_from_the_card_in_the_dense_models_folder(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", encoding="utf-8")
    model = type(make_model()).from_pretrained(tmp_path)
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).apply(model)
    assert create_card(model).data.license == "apache-2.0"


@pytest.mark.parametrize(
    ("own", "base_model", "expected"),
    [
        ("apache-2.0", None, "apache-2.0"),
        (None, None, "of acme/recorded"),
        ("apache-2.0", "acme/given", "of acme/given"),
        ("apache-2.0", "acme/unreachable", "apache-2.0"),
        (None, "acme/unreachable", None),
    ],
)
def test_first_licence_that_is_found_counts(
    own: str | None, base_model: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_info(api: Any, name: str, **_: Any) -> SimpleNamespace:
        if name == "acme/unreachable":
            raise OSError
        return SimpleNamespace(card_data=ModelCardData(license=f"of {name}"))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    (tmp_path / "config.json").write_text(json.dumps({"mwanda_config": make_record() | {"model": "acme/recorded"}}))
    (tmp_path / "README.md").write_text(f"---\nlicense: {own}\n---\n# M\n" if own else "# M\n", encoding="utf-8")
    assert create_card(tmp_path, base_model=base_model).data.license == expected


def test_card_without_a_reachable_base_model_names_no_licence() -> None:
    assert create_card(make_record() | {"model": "acme/base"}).data.license is None


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "mwanda", "allocation": "cwl", "languages": ["en", "swh_Latn"], "language_weights": {"en": 2.0}},
        {"criterion": "wanda", "pattern": "2:4", "exclude": ["*.q_proj", "*.k_proj"]},
        {"criterion": "ria", "allocation": "owl", "sparsity": 0.6, "seed": 7},
        {"criterion": "magnitude", "allocation": "uniform"},
    ],
)
def test_python_code_and_command_line_repeat_the_settings(settings: dict[str, Any]) -> None:
    card = create_card(make_record(**settings) | {"model": "acme/base"})
    config = re.search(r"^config = (MWandaConfig\(.*?^\))$", code(card, "MWandaPruner"), re.MULTILINE | re.DOTALL)
    assert config is not None
    assert eval(config[1], {"MWandaConfig": MWandaConfig}) == MWandaConfig(**settings)
    (line,) = (line for line in card.text.splitlines() if line.startswith("optimum-cli"))
    words = shlex.split(line)
    assert words[:5] == ["optimum-cli", "mwanda", "prune", "acme/base", "pruned"]
    assert words[words.index("--languages") + 1 : words.index("--seed")] == ["en", "swh_Latn"]
    assert float(words[words.index("--sparsity") + 1]) == MWandaConfig(**settings).sparsity
    for flag in ("criterion", "pattern", "allocation", "seed"):
        assert words[words.index(f"--{flag}") + 1] == str(getattr(MWandaConfig(**settings), flag))


SHAPED_BY = {
    "mwanda": (
        {"variance": "std"},
        {"base", "variance_weight", "group", "allocation_strength", "sequence_length"},
        {"cwl_direction"},
    ),
    "wanda": (
        {"criterion": "wanda", "group": "row", "allocation": "uniform"},
        {"group", "allocation", "calibration", "samples_per_language"},
        {"base", "variance", "variance_weight", "activation", "ria_exponent", "allocation_strength", "owl_multiplier"},
    ),
    "magnitude": (
        {"criterion": "magnitude", "allocation": "uniform"},
        {"group", "sparsity", "include"},
        {"calibration", "languages", "seed", "bos", "batch_size", "damping", "language_weights"},
    ),
    "sparsegpt": (
        {"criterion": "sparsegpt", "group": "row"},
        {"damping", "reconstruction_shrinkage", "calibration"},
        {"group", "refinement", "refinement_ridge"},
    ),
    "weighed rows": (
        {"criterion": "alps", "group": "matrix", "sensitivity": "fisher"},
        {"group", "sensitivity", "sensitivity_exponent", "damping"},
        {"refinement", "refinement_ridge"},
    ),
    "coupled rows": (
        {"refinement": "swap", "sensitivity": "fisher"},
        {"sensitivity", "refinement_ridge"},
        {"sensitivity_exponent"},
    ),
    "pattern": ({"criterion": "wanda", "pattern": "2:4"}, {"pattern"}, {"group", "allocation", "max_block_sparsity"}),
    "refined": (
        {"refinement": "swap"},
        {"refinement_shrinkage"},
        {
            "damping",
            "reconstruction_shrinkage",
            "language_temperature",
            "refinement_reach",
            "reconstruction_epochs",
            "sensitivity",
        },
    ),
    "trained masks": (
        {"refinement": "block"},
        {"refinement_reach", "reconstruction_epochs", "reconstruction_region"},
        {"refinement_ridge", "reconstruction_learning_rate", "damping"},
    ),
}


@pytest.mark.parametrize("method", SHAPED_BY)
def test_settings_that_apply_are_in_a_table_and_no_others(method: str) -> None:
    settings, listed, left_out = SHAPED_BY[method]
    record = make_record(**settings)
    card = create_card(record | ({"languages": {}} if method == "magnitude" else {}))
    cells = {row[0].strip("`"): row[1] for row in rows(section(card, "How it was pruned"))}
    names = record["settings"].keys() & cells.keys()
    assert listed <= names
    assert not left_out & cells.keys()
    repeated = re.search(r"^config = MWandaConfig\((.*?)^\)$", card.text, re.MULTILINE | re.DOTALL)
    assert repeated is not None
    assert set(re.findall(r"^    (\w+)=", repeated[1], re.MULTILINE)) == names
    assert ("Weights competed" in card.text) is ("group" in names)
    assert cells["sparsest block"] == "62.5 %"


def test_only_mwanda_is_called_a_reconstruction_of_the_paper() -> None:
    assert "**reconstruction** of [the paper]" in create_card(make_record()).text
    assert "[the paper]" not in create_card(make_record(criterion="wanda")).text


def test_changed_values_of_weights_that_stay_are_told() -> None:
    words = "their values differ from the dense model"
    assert words not in create_card(make_record(criterion="wanda")).text
    assert words in create_card(make_record(criterion="wanda", reconstruction="obs")).text
    assert words in create_card(make_record(criterion="sparsegpt")).text


def test_the_training_of_blocks_is_told_with_its_errors() -> None:
    record = make_record(criterion="wanda", reconstruction="block")
    record["blocks"]["reconstruction"] = {"epoch": [2, 0], "before": [0.2, 0.1], "after": [0.1, 0.1]}
    text = create_card(record).text
    assert "The remaining weights were trained block by block" in text
    assert "their values differ from the dense model" in text
    assert "without retraining" not in text
    assert "OBS" not in text
    assert re.search(r"before training, in the mean *\| *15\.0 %", text)
    assert re.search(r"after training, in the mean *\| *10\.0 %", text)
    both = create_card(make_record(criterion="alps", reconstruction="block")).text
    assert "OBS" in both
    assert "The remaining weights were then trained block by block" in both
    masks = create_card(make_record(refinement="swap+block")).text
    assert "Which weights stay was then trained block by block" in masks
    assert "without retraining" in masks
    assert "values differ" not in masks


@pytest.mark.parametrize(
    ("settings", "sources"),
    [
        ({"criterion": "mwanda"}, set()),
        ({"criterion": "sparsegpt"}, {"2301.00774"}),
        ({"criterion": "alps"}, {"2406.07831"}),
        ({"criterion": "wanda", "refinement": "swap"}, {"2512.10922"}),
        ({"criterion": "wanda", "allocation": "dlp"}, {"2505.23807"}),
        ({"criterion": "wanda", "allocation": "alpha"}, {"2410.10912"}),
    ],
)
def test_sources_are_named_where_they_were_used(settings: dict[str, Any], sources: set[str]) -> None:
    card = create_card(make_record(**settings))
    optional = {"2301.00774", "2406.07831", "2512.10922", "2505.23807", "2410.10912"}
    linked = set(re.findall(r"\(https://arxiv\.org/abs/([\d.]+)\)", section(card, "How it was pruned")))
    assert linked & optional == sources
    cited = set(re.findall('eprint = "([\\d.]+)"', section(card, "Citation")))
    assert cited - {"2505.21171", "2306.11695"} == sources & {"2301.00774", "2406.07831"}


def test_no_block_is_said_to_follow_languages_that_did_not() -> None:
    for allocation in ALLOCATIONS:
        assert ("(CWL" in create_card(make_record(allocation=allocation)).text) is (allocation == "cwl")


def test_sequential_calibration_is_told() -> None:
    words = "on the outputs of the pruned blocks before it"
    assert words in create_card(make_record(calibration="sequential")).text
    assert words not in create_card(make_record(calibration="dense")).text


def test_group_and_calibration_are_told_in_words_and_in_the_table() -> None:
    told = section(create_card(make_record(group="row", calibration="dense")), "How it was pruned")
    assert "all others of their row." in told
    assert "Activations were those of the dense model." in told
    assert re.search(r"\| group +\| +`row` \|", told)
    assert re.search(r"\| calibration +\| +`dense` \|", told)
    assert "of their matrix." in create_card(make_record(group="matrix")).text


def test_the_command_names_no_setting_that_follows_from_the_others() -> None:
    def flags(**settings: Any) -> set[str]:
        (line,) = (x for x in create_card(make_record(**settings)).text.splitlines() if x.startswith("optimum-cli"))
        return set(re.findall("--[a-z-]+", line)) - {"--dataset", "--sparsity", "--criterion", "--pattern"}

    always = {"--allocation", "--languages", "--seed"}
    assert flags() == flags(criterion="sparsegpt", allocation="uniform") == always
    assert flags(damping=0.2, max_block_sparsity=0.9) == always | {"--damping", "--max-block-sparsity"}
    assert flags(sparsity=0.97, max_block_sparsity=0.99) == always | {"--max-block-sparsity"}
    assert flags(reconstruction="obs", calibration="dense") == always | {"--reconstruction", "--calibration"}


def test_pruning_without_data_is_described_without_data() -> None:
    record = make_record(criterion="magnitude", allocation="uniform") | {"languages": {}, "dataset_fingerprints": []}
    text = create_card(record).text
    assert "No calibration text was used." in text
    assert "--languages" not in text
    assert "dataset = " not in text


def test_repeated_pruning_is_mentioned() -> None:
    record = make_record()
    record["history"] = [copy.deepcopy(record)]
    assert "this was pruning number 2" in create_card(record).text


def test_card_says_what_pruning_does_not_give() -> None:
    dense = section(create_card(make_record()), "What pruning does not give you")
    assert "The files are not smaller." in dense
    assert "Memory is not smaller." in dense
    assert "It is not faster." in dense
    compressed = create_card(make_record(), compressed=True)
    assert "The files are not smaller." not in compressed.text
    assert "import optimum_mwanda" in code(compressed, 'model = AutoModelForCausalLM.from_pretrained("path/to/this')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": None}, "blocks"),
        ({"languages": {"en": 3}}, "languages"),
        ({"achieved_sparsity": 0.9}, "achieved_sparsity"),
        ({"settings": {"sparsity": 7}}, "settings in the sparsity record cannot be read: sparsity=7"),
        ({"settings": {"speed": 1}}, "'speed' is not a setting"),
        ({"settings": {"languages": 5}}, "settings in the sparsity record cannot be read"),
    ],
)
def test_malformed_record_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_card(make_record() | change)


def test_model_without_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="has no sparsity record"):
        create_card(make_model())


def test_report_about_several_models_is_refused() -> None:
    several = PerplexityComparison(REPORT.dense, {"a": REPORT.dense, "b": REPORT.dense})
    with pytest.raises(ValueError, match="compares 2 pruned models"):
        create_card(make_record(), report=several)


@pytest.mark.parametrize("evil", HOSTILE)
def test_strings_of_a_record_are_shown_and_never_obeyed(evil: str) -> None:
    record = make_record(exclude=[evil], text_column=evil, languages=[evil], language_weights={evil: 1.0})
    record |= {"library_version": evil, "model": evil, "languages": {evil: {"tokens": 1, "weight": 1.0}}}
    record["versions"] = {"torch": evil, "transformers": evil}
    if evil.isprintable():
        record["blocks"]["names"][0] = evil
    card = create_card(record, report=make_report({evil: 0.1}))
    prose = re.sub("`[^`\n]*`", "", without_fences(card.text))
    assert not re.search(r"<(?!!-- optimum-mwanda:(begin|end) -->)|javascript|7 \*|right|rm -rf|1337", prose)
    assert [name for name in headings(card.text) if not name.startswith("# ")] == HEADINGS[1:]
    assert card.text.count("\n```") == create_card(make_record()).text.count("\n```")
    tables = [line for line in without_fences(card.text).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {3, 4, 6}
    assert card.data.license is None
    assert metadata_errors(str(card)) == []
    config = re.search(r"^config = (MWandaConfig\(.*?^\))$", code(card, "MWandaPruner"), re.MULTILINE | re.DOTALL)
    assert config is not None
    assert isinstance(eval(config[1], {"MWandaConfig": MWandaConfig}), MWandaConfig)
    (line,) = (line for line in card.text.splitlines() if line.startswith("optimum-cli"))
    assert len(shlex.split(line)) == len(shlex.split(line, comments=True)) == (25 if clean(evil) == evil else 19)
    assert str(create_card(record, existing=str(card), report=make_report({evil: 0.1}))) == str(card)


def test_update_replaces_the_own_section_and_leaves_the_rest() -> None:
    old = str(create_card(make_record(seed=1), report=REPORT, repo_id="me/x"))
    edited = old.replace("# x\n", "# My title\n\nBefore.\n") + "\nAfter.\n"
    new = str(create_card(make_record(seed=2), repo_id="me/x", existing=edited))
    assert "# My title\n\nBefore.\n\n<!--" in new
    assert new.endswith(f"{END}\n\nAfter.\n")
    assert "--seed 2" in new
    assert "--seed 1" not in new
    assert "model-index" not in new, "results of a model that is no longer there"


def test_card_without_the_section_gets_it_at_the_end() -> None:
    card = create_card(make_record(), existing="# Title\n\nText.\n\n\n")
    assert card.text.startswith("# Title\n\nText.\n\n" + BEGIN)
    assert card.text.endswith(END + "\n")


def test_update_changes_nothing_the_second_time() -> None:
    once = str(create_card(make_record(), report=REPORT, existing="---\nlicense: mit\ntags: mine\n---\n# Title\n"))
    assert str(create_card(make_record(), report=REPORT, existing=once)) == once


def test_update_keeps_foreign_metadata_and_results() -> None:
    foreign = EvalResult("text-generation", "xcopa", "XCOPA", "accuracy", 0.6)
    data = ModelCardData(license="mit", tags=["mine"], language="yo", eval_results=[foreign], model_name="m", extra="x")
    card = create_card(make_record(), report=REPORT, existing=f"---\n{data.to_yaml()}\n---\n# T\n")
    assert foreign in card.data.eval_results
    assert len(card.data.eval_results) == 7
    assert (card.data.license, card.data.extra, card.data.model_name) == ("mit", "x", "m")
    assert card.data.language == ["yo", "en", "swh", "zh"]
    assert card.data.tags[0] == "mine"


def test_update_keeps_windows_line_ends() -> None:
    text = str(create_card(make_record(), existing="---\r\nlicense: mit\r\n---\r\n# Title\r\n"))
    assert text.count("\n") == text.count("\r\n")


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        (f"# T\n{BEGIN}\n", "1 lines .* and 0 lines"),
        (f"# T\n{END}\n{BEGIN}\n", "in this order"),
        ("---\nlicense: [\n---\n# T\n", "cannot be read"),
        ("---\n- a\n---\n# T\n", "cannot be read"),
    ],
)
def test_damaged_card_is_not_overwritten(existing: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_card(make_record(), existing=existing)


def test_card_is_saved_with_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = save_card(make_record(), tmp_path / "new", report=REPORT)
    card = ModelCard.load(path)
    for heading, picture in (
        ("Sparsity of each block", "![Share of zeros in every block](sparsity.png)"),
        ("Perplexity per language", "![Increase of the log-perplexity in every language](degradation.png)"),
    ):
        assert picture in section(card, heading).splitlines()
    files = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    assert files.keys() == {"README.md", "sparsity.png", "degradation.png"}
    assert all(files[name].startswith(b"\x89PNG") for name in ("sparsity.png", "degradation.png"))
    save_card(make_record(), tmp_path / "new", report=REPORT)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == files


def test_model_without_evaluation_has_no_picture_of_its_losses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = save_card(make_record(), tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"README.md", "sparsity.png"}
    assert "degradation.png" not in path.read_text(encoding="utf-8")


def test_loss_that_is_no_number_does_not_keep_the_card_from_being_written(tmp_path: Path) -> None:
    """The model is pruned by then."""
    pytest.importorskip("matplotlib")
    path = save_card(make_record(), tmp_path, report=make_report({"en": float("nan"), "sw": 0.1}))
    assert "(degradation.png)" in path.read_text(encoding="utf-8")


def test_without_matplotlib_the_card_has_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    card = ModelCard.load(save_card(make_record(), tmp_path, report=REPORT))
    assert "![" not in card.text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert rows(section(card, "Sparsity of each block"))[1:] == [
        ["`model.layers.0`", "62.5 %"],
        ["`model.layers.1`", "37.5 %"],
    ]


def test_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_block_sparsity(SparsityRecord.parse(make_record()), tmp_path / "plot.png")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("keep", [True, False])
def test_snippet_of_the_card_keeps_the_zeros_in_training(family: str, keep: bool) -> None:
    model = make_model(family)
    config = MWandaConfig(sequence_length=16, samples_per_language=2)
    MWandaPruner(config, progress=False).prune(model, make_rows())
    names: dict[str, Any] = {}
    exec(code(create_card(model), "class KeepZeros"), names)
    callbacks: list[TrainerCallback] = [names["KeepZeros"]()] if keep else []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = SimpleNamespace()
    for callback in callbacks:
        callback.on_train_begin(state, state, state, model=model)
    for _ in range(3):
        ids = torch.arange(16)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        for callback in callbacks:
            callback.on_optimizer_step(state, state, state, model=model)
        optimizer.zero_grad()
    assert verify_sparsity(model).ok is keep


def test_card_of_a_saved_folder_is_that_of_the_model(tmp_path: Path) -> None:
    model = make_model()
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).apply(model)
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["mwanda_config"]
    assert str(create_card(tmp_path)) == str(create_card(model)) == str(create_card(record))
    assert str(create_card(SparsityRecord.parse(record))) == str(create_card(record))


def make_experts(**changes: Any) -> dict[str, Any]:
    """What a record says of the experts of a mixture."""
    experts = {"policy": "magnitude", "wanted": 32, "count": 8, "lacking": 0, "names": [], "fewest": 0, "unreached": {}}
    return experts | changes


@pytest.mark.parametrize(
    ("policy", "words"),
    [("magnitude", "pruned by magnitude"), ("shared", "statistics of all experts"), ("skip", "left dense")],
)
def test_experts_that_lacked_text_are_told_with_what_became_of_them(policy: str, words: str) -> None:
    experts = make_experts(policy=policy, lacking=2, names=["a", "b"], unreached={"en": 3, "swh_Latn": 1})
    card = create_card(make_record(experts_policy=policy) | {"experts": experts})
    text = " ".join(section(card, "How it was pruned").split())
    assert "2 of 8 experts got fewer than 32 calibration tokens" in text
    assert words in text
    assert "`en` (3), `swh_Latn` (1)." in text


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, False), ({"reconstruction": "obs"}, True), ({"reconstruction": "obs", "experts_policy": "skip"}, False)],
)
def test_update_that_left_out_experts_is_told(settings: dict[str, Any], told: bool) -> None:
    card = create_card(make_record(**settings) | {"experts": make_experts(lacking=1, names=["a"])})
    assert ("The weights that these experts kept were not updated." in card.text) is told


def test_nothing_is_said_of_experts_that_were_all_reached() -> None:
    text = create_card(make_record() | {"experts": make_experts(fewest=4)}).text
    assert text == create_card(make_record()).text


@pytest.mark.parametrize(
    ("family", "auto_class", "pipeline"),
    [
        ("mixtral", "AutoModelForCausalLM", "text-generation"),
        ("t5", "AutoModelForSeq2SeqLM", None),
    ],
)
def test_the_card_names_the_class_that_loads_the_model(
    family: str, auto_class: str, pipeline: str | None, tmp_path: Path
) -> None:
    model = make_family(family)
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).apply(model)
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        card = create_card(source)
        assert card.data.get("pipeline_tag") == pipeline
        assert f"model = {auto_class}.from_pretrained(" in section(card, "How to load it")
        assert f"model = {auto_class}.from_pretrained(" in section(card, "How to reproduce it")


def test_the_snippet_keeps_the_zeros_of_fused_experts() -> None:
    model = make_family("mixtral")
    MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform"), progress=False).apply(model)
    names: dict[str, Any] = {}
    exec(code(create_card(model), "class KeepZeros"), names)
    callback = names["KeepZeros"]()
    callback.on_train_begin(None, None, None, model=model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    callback.on_optimizer_step(None, None, None, model=model)
    assert verify_sparsity(model).ok


def test_a_plan_is_named_in_the_card_and_in_what_repeats_the_pruning() -> None:
    card = section(create_card(make_record() | {"plan": "search"}, report=REPORT), "How it was pruned")
    text = create_card(make_record() | {"plan": "search"}, report=REPORT).text
    assert "A search gave every matrix its sparsity" in card
    assert "Every block got the same sparsity" not in text
    assert "kept more weights" not in text
    assert 'plan=SparsityPlan.load("plan.json")' in text
    edited = create_card(make_record() | {"plan": "edited"}, report=REPORT).text
    assert "A plan gave every block its sparsity (" in edited
    assert "a search" not in edited.lower()
