"""What every subcommand does, and how it ends."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from optimum_mwanda.data import chunks
from optimum_mwanda.record.verification import sparsity_record, verify_sparsity
from optimum_mwanda.walking import calibrating

from ..conftest import make_model
from ..evaluation.harness.test_results import TASKS, make_results
from ..storage.families import make_family
from .conftest import SMALL, Pruned, Run

Cli = Callable[..., Run]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(path).state_dict()


def is_equal(one: Path, other: Path) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def change_record(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["mwanda_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


class TestPrune:
    def test_writes_a_checkpoint_that_is_complete(self, pruned: Pruned) -> None:
        assert pruned.run.code == 0, pruned.run.err
        names = {path.name for path in pruned.path.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "evaluation.json"} <= names
        assert verify_sparsity(pruned.path).ok
        assert AutoTokenizer.from_pretrained(pruned.path)("w2 w3")["input_ids"] == [2, 3]
        assert MWandaConfig.from_pretrained(pruned.path).sequence_length == 16
        assert [path.name for path in pruned.path.parent.iterdir()] == [pruned.path.name]

    def test_prints_a_table_per_language_and_no_progress(self, pruned: Pruned) -> None:
        assert "| sw " in pruned.run.out
        assert "50.0" in pruned.run.out
        assert pruned.run.err == ""

    def test_evaluates_the_dense_and_the_pruned_model(self, pruned: Pruned) -> None:
        report = json.loads((pruned.path / "evaluation.json").read_text())
        assert report["seen"] == ["en", "fr", "sw"]
        assert report["dense"]["languages"][0]["nll"] != report["pruned"]["pruned"]["languages"][0]["nll"]
        assert ModelCard.load(pruned.path / "README.md").data.eval_results

    def test_config_file_and_flags_end_up_in_the_record(self, cli: Cli, model: Path, tmp_path: Path) -> None:
        config = tmp_path / "settings.json"
        config.write_text('{"criterion": "magnitude", "allocation": "uniform", "sparsity": 0.3, "group": "row"}')
        out = tmp_path / "out"
        run = cli("prune", model, out, "--config", config, "--sparsity", "0.75", "--json", "--quiet")
        assert run.code == 0, run.err
        settings = sparsity_record(out).settings  # type: ignore[union-attr]
        assert (settings["criterion"], settings["sparsity"], settings["group"]) == ("magnitude", 0.75, "row")
        assert run.json["achieved_sparsity"] == pytest.approx(0.75, abs=0.01)
        assert run.json["output"] == str(out)
        assert run.json["evaluation"] is None

    def test_settings_that_were_found_by_trying_are_in_record_and_card(
        self, cli: Cli, model: Path, data: Path, tmp_path: Path
    ) -> None:
        more = ("--criterion", "alps", "--tune-regularisation", "--language-weights", "minimax", "--quiet")
        more += ("--minimax-rounds", "1")
        run = cli("prune", model, tmp_path / "out", "--dataset", data, "--sequence-length", "16", *more)
        assert run.code == 0, run.err
        record = sparsity_record(tmp_path / "out")
        assert record is not None
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert record.chosen.keys() == {"regularisation", "language_weights"}
        assert all(f"found by trying: `{how}`" in card for how in record.chosen.values())
        assert record.settings["tune_regularisation"] is False

    def test_hidden_states_may_lie_in_a_file(self, cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
        words = ["--dataset", data, "--calibration", "sequential", "--sequence-length", "16"]
        for name, place in (("device", "device"), ("file", tmp_path)):
            assert cli("prune", model, tmp_path / name, *words, "--activations", place).code == 0
        assert is_equal(tmp_path / "device", tmp_path / "file")
        refused = cli("prune", model, tmp_path / "new", *words, "--activations", "gpu")
        assert refused.code == 2
        assert "activations='gpu' is not allowed" in refused.err

    def test_compressed_checkpoint_holds_the_same_weights(
        self, cli: Cli, model: Path, data: Path, pruned: Pruned, tmp_path: Path
    ) -> None:
        out = tmp_path / "small"
        assert cli("prune", model, out, "--dataset", data, "--compressed", *SMALL).code == 0
        assert not (out / "model.safetensors").exists()
        assert is_equal(out, pruned.path)

    def test_dtype_and_device_are_those_asked_for(self, cli: Cli, model: Path, tmp_path: Path) -> None:
        words = [
            "--criterion",
            "magnitude",
            "--allocation",
            "uniform",
            "--dtype",
            "bfloat16",
            "--device-map",
            "cpu",
            "--quiet",
        ]
        assert cli("prune", model, tmp_path / "out", *words).code == 0
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16

    def test_page_is_written_with_the_model(self, cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
        out, page = tmp_path / "out", tmp_path / "page.html"
        words = ("--dataset", data, "--eval-dataset", data, *SMALL, "--report", page)
        run = cli("prune", model, out, *words)
        assert run.code == 0, run.err
        assert f"Wrote {page}.\n" in run.out
        text = page.read_text(encoding="utf-8")
        assert all(f">{name}<" in text for name in ("sw", "model.layers.2", "samples_per_language"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "page.html"]
        assert cli("prune", model, tmp_path / "other", *words).code == 2  # the page is there

    def test_page_without_an_evaluation_is_a_usage_error(
        self, cli: Cli, model: Path, data: Path, tmp_path: Path
    ) -> None:
        run = cli("prune", model, tmp_path / "out", "--dataset", data, *SMALL, "--report", tmp_path / "page.html")
        assert run.code == 2
        assert "--eval-dataset" in run.error
        assert list(tmp_path.iterdir()) == []

    def test_model_is_complete_although_the_page_cannot_be_written(
        self, cli: Cli, model: Path, data: Path, tmp_path: Path
    ) -> None:
        page = tmp_path / ("x" * 250 + ".html")  # as long as a name may be, too long for the one while it is written
        words = ("--dataset", data, "--eval-dataset", data, *SMALL, "--report", page)
        run = cli("prune", model, tmp_path / "out", *words)
        assert run.code == 3
        assert "is complete, but the report cannot be written" in run.error
        assert verify_sparsity(tmp_path / "out").ok
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_json_is_all_that_is_printed(self, cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
        run = cli("prune", model, tmp_path / "out", "--dataset", data, "--eval-dataset", data, *SMALL, "--json")
        assert set(run.json["evaluation"]) == {"seen", "confidence", "dense", "pruned"}
        assert set(run.json["languages"]) == {"en", "fr", "sw"}


class TestCalibrateAndApply:
    def test_statistics_are_written(self, statistics: Path) -> None:
        assert CalibrationStatistics.load(statistics).languages == ("en", "fr", "sw")

    def test_text_is_read_while_a_model_runs_on_a_gpu(
        self, cli: Cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, ahead = [], chunks.ahead
        monkeypatch.setattr(calibrating, "input_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr(chunks, "ahead", lambda items: read.append(items) or ahead(items))
        for number, name in enumerate(("calibrate", "prune"), start=1):
            run = cli(name, model, tmp_path / name, "--dataset", data, *SMALL)
            assert (run.code, len(read)) == (0, number), run.err

    def test_existing_statistics_are_kept(self, cli: Cli, model: Path, data: Path, statistics: Path) -> None:
        run = cli("calibrate", model, statistics, "--dataset", data, *SMALL)
        assert run.code == 2
        assert "--overwrite" in run.error

    def test_calibrate_then_apply_is_prune(
        self, cli: Cli, model: Path, statistics: Path, pruned: Pruned, tmp_path: Path
    ) -> None:
        run = cli("apply", model, statistics, tmp_path / "out", "--sparsity", "0.5", "--quiet")
        assert run.code == 0, run.err
        assert is_equal(tmp_path / "out", pruned.path)
        assert (tmp_path / "out" / "README.md").is_file()

    def test_several_sparsities_get_a_folder_each(
        self, cli: Cli, model: Path, statistics: Path, pruned: Pruned, tmp_path: Path
    ) -> None:
        run = cli("apply", model, statistics, tmp_path / "all", "--sparsity", "0.7", "0.5", "--quiet", "--json")
        assert run.code == 0, run.err
        assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["sparsity-0.5", "sparsity-0.7"]
        achieved = [entry["achieved_sparsity"] for entry in run.json["models"]]
        assert achieved == pytest.approx([0.7, 0.5], abs=0.5 / 32)  # half a weight of the shortest row
        assert is_equal(tmp_path / "all" / "sparsity-0.5", pruned.path)

    def test_failure_at_the_second_sparsity_leaves_nothing(
        self, cli: Cli, model: Path, statistics: Path, tmp_path: Path
    ) -> None:
        run = cli("apply", model, statistics, tmp_path / "all", "--sparsity", "0.5", "1.5", "--quiet")
        assert (run.code, list(tmp_path.iterdir())) == (2, [])

    def test_statistics_that_are_none_are_a_data_error(self, cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
        assert cli("apply", model, data, tmp_path / "out").code == 3
        assert cli("apply", model, tmp_path / "none", tmp_path / "out").code == 3
        assert list(tmp_path.iterdir()) == []

    def test_sequential_calibration_is_refused(self, cli: Cli, model: Path, statistics: Path, tmp_path: Path) -> None:
        (tmp_path / "c.json").write_text('{"calibration": "sequential"}')
        run = cli("apply", model, statistics, tmp_path / "out", "--config", tmp_path / "c.json")
        assert run.code == 2
        assert "use `prune` with --dataset, or give --calibration dense" in run.error
        assert cli("apply", model, statistics, tmp_path / "out", "--preset", "wanda").error == run.error
        words = ("--preset", "wanda", "--calibration", "dense", "--quiet")
        run = cli("apply", model, statistics, tmp_path / "out", *words)
        assert run.code == 0, run.err
        assert "(wanda, unstructured per row, uniform allocation, dense calibration)" in run.out

    @pytest.mark.parametrize(
        ("words", "what", "instead"),
        [
            (("--refinement", "swap"), "--refinement swap", "--refinement none"),
            (("--reconstruction", "obs"), "--reconstruction obs", "--reconstruction none"),
            (("--criterion", "sparsegpt"), "--criterion sparsegpt", "another --criterion"),
            (("--criterion", "alps"), "--criterion alps", "another --criterion"),
        ],
    )
    def test_what_works_block_by_block_is_refused_before_anything_is_loaded(
        self, cli: Cli, tmp_path: Path, words: tuple[str, ...], what: str, instead: str
    ) -> None:
        run = cli("apply", tmp_path / "no_model", tmp_path / "no_statistics", tmp_path / "out", *words)
        assert run.code == 2
        assert f"{what} looks at each block" in run.error
        assert run.error.endswith(f"use `prune` with --dataset, or give {instead}.")
        assert list(tmp_path.iterdir()) == []

    def test_weights_that_are_found_by_pruning_are_refused(self, cli: Cli, tmp_path: Path) -> None:
        words = ("--language-weights", "minimax")
        run = cli("apply", tmp_path / "no_model", tmp_path / "no_statistics", tmp_path / "out", *words)
        assert run.code == 2
        assert "use `prune` with --dataset" in run.error

    def test_what_looks_at_no_data_may_be_sequential(
        self, cli: Cli, model: Path, statistics: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "c.json").write_text('{"calibration": "sequential"}')
        words = ("--config", tmp_path / "c.json", "--criterion", "magnitude", "--allocation", "uniform", "--quiet")
        run = cli("apply", model, statistics, tmp_path / "out", *words)
        assert run.code == 0, run.err


class TestEvaluate:
    def test_one_model(self, cli: Cli, model: Path, data: Path) -> None:
        run = cli("evaluate", model, "--dataset", data, "--languages", "sw", "--quiet", "--json")
        assert [entry["language"] for entry in run.json["languages"]] == ["sw"]

    def test_against_the_dense_model(self, cli: Cli, model: Path, data: Path, pruned: Pruned, tmp_path: Path) -> None:
        out = tmp_path / "sub" / "report.json"
        words = ("--dense", model, "--output", out, "--sequence-length", "16", "--quiet")
        run = cli("evaluate", pruned.path, "--dataset", data, *words)
        assert run.code == 0, run.err
        assert "| **worst** " in run.out
        report, other = json.loads(out.read_text()), json.loads((pruned.path / "evaluation.json").read_text())
        assert report["seen"] == ["en", "fr", "sw"]
        assert report["pruned"]["pruned"]["languages"] == other["pruned"]["pruned"]["languages"]
        assert cli("evaluate", pruned.path, "--dataset", data, *words).code == 2

    @pytest.mark.parametrize(("words", "code"), [(["--languages", "xx"], 3), (["--batch-size", "0"], 2)])
    def test_errors(self, cli: Cli, model: Path, data: Path, words: list[str], code: int) -> None:
        run = cli("evaluate", model, "--dataset", data, "--quiet", *words)
        assert run.code == code
        assert words[1] in run.error


class TestInspect:
    def test_shows_record_layers_and_verification(self, cli: Cli, pruned: Pruned) -> None:
        run = cli("inspect", pruned.path)
        assert run.code == 0
        assert "| model.layers.2 |" in run.out
        assert "calibrated on sw" in run.out
        assert "All 21 matrices" in run.out

    def test_json(self, cli: Cli, pruned: Pruned) -> None:
        values = cli("inspect", pruned.path, "--json").json
        assert values["record"] == json.loads((pruned.path / "config.json").read_text())["mwanda_config"]
        assert values["verification"]["ok"]
        assert len(values["sparsity"]) == 21

    def test_weights_that_differ_from_the_record_fail(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(pruned.path)
        with torch.no_grad():
            loaded.model.layers[1].mlp.up_proj.weight.fill_(1)
        loaded.save_pretrained(tmp_path)
        run = cli("inspect", tmp_path, "--json")
        assert run.code == 4
        assert "differ" in run.error
        assert [entry["name"] for entry in run.json["verification"]["lost"]] == ["model.layers.1.mlp.up_proj"]

    def test_record_without_settings_is_shown(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(pruned.path, tmp_path / "model"))
        change_record(folder, settings={})
        run = cli("inspect", folder)
        assert run.code == 0, run.err
        assert "unknown allocation" in run.out
        assert cli("compress", folder, tmp_path / "small").err == ""

    def test_strings_of_the_record_cannot_steer_the_terminal(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        evil = "x\x1b[2J\x9b1m\u202e\r\n| seed | 9 |\x07"
        folder = Path(shutil.copytree(pruned.path, tmp_path / "model"))
        change_record(
            folder,
            settings={"criterion": evil, "allocation": [evil], evil: evil},
            model=evil,
            library_version=evil,
            versions={"torch": evil, "transformers": evil, evil: {evil: evil}},
            languages={evil: {"tokens": 1, "weight": 1.0}},
        )
        plain, values = cli("inspect", folder), cli("inspect", folder, "--json")
        assert plain.code == values.code == 0
        for shown in (plain.out, values.out):
            assert shown.replace("\n", "").isprintable()
        assert len([line for line in plain.out.splitlines() if line.startswith("| seed ")]) == 1
        assert values.json["record"] == sparsity_record(folder).to_dict()  # type: ignore[union-attr]

    def test_shows_which_experts_lacked_text(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(pruned.path, tmp_path / "model"))
        experts = {"policy": "skip", "wanted": 32, "count": 64, "fewest": 0, "unreached": {"sw": 5}}
        names = [f"layers.0.experts.{number}" for number in range(32)]
        change_record(folder, experts={**experts, "lacking": 40, "names": names})
        lines = cli("inspect", folder).out.splitlines()
        (lacking,) = (line for line in lines if "experts below 32 tokens" in line)
        assert "40 of 64 (skip): layers.0.experts.0, layers.0.experts.1," in lacking
        (missed,) = (line for line in lines if "experts without sw" in line)
        assert "5 of 64" in missed

    def test_dense_model_is_a_model_error(self, cli: Cli, model: Path) -> None:
        run = cli("inspect", model)
        assert run.code == 4
        assert "no sparsity record" in run.error


class TestCard:
    def test_writes_and_updates(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        AutoModelForCausalLM.from_pretrained(pruned.path).save_pretrained(tmp_path)
        assert cli("card", tmp_path, "--base-model", "acme/base").code == 0
        path = tmp_path / "README.md"
        assert not ModelCard.load(path).data.eval_results
        path.write_text(path.read_text() + "\nMine.\n")
        run = cli("card", tmp_path, "--report", pruned.path / "evaluation.json", "--json")
        assert run.json == {"output": str(path)}
        card = ModelCard.load(path)
        assert card.data.eval_results
        assert card.text.rstrip().endswith("Mine.")

    def test_errors(self, cli: Cli, model: Path, pruned: Pruned, data: Path, tmp_path: Path) -> None:
        assert cli("card", tmp_path / "none").code == 2
        assert cli("card", model).code == 4
        assert cli("card", pruned.path, "--report", data).code == 3
        assert cli("card", pruned.path, "--report", tmp_path / "none.json").code == 3

    def test_report_is_kept_for_later_cards(
        self, cli: Cli, model: Path, data: Path, pruned: Pruned, tmp_path: Path
    ) -> None:
        folder, small = tmp_path / "model", tmp_path / "small"
        AutoModelForCausalLM.from_pretrained(pruned.path).save_pretrained(folder)
        ids = ("--repo-id", "me/pruned", "--base-model", "acme/base")
        assert cli("card", folder, "--report", pruned.path / "evaluation.json", *ids).code == 0
        assert json.loads((folder / "evaluation.json").read_text())["seen"] == ["en", "fr", "sw"]
        first = (folder / "README.md").read_text()
        assert cli("card", folder).code == 0
        assert (folder / "README.md").read_text() == first
        assert cli("compress", folder, small).code == 0
        card = ModelCard.load(small / "README.md")
        assert card.data.eval_results
        assert card.data.base_model == "acme/base"
        assert 'AutoModelForCausalLM.from_pretrained("me/pruned")' in card.text
        assert "was not evaluated" not in card.text

    def test_benchmarks_are_shown_and_kept_for_later_cards(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        folder, small = tmp_path / "model", tmp_path / "small"
        AutoModelForCausalLM.from_pretrained(pruned.path).save_pretrained(folder)
        for name, task in (("dense", TASKS["xcopa_sw"]), ("pruned", TASKS["xcopa_sw"] | {"values": {"acc,none": 0.5}})):
            (tmp_path / name).mkdir()
            results = json.dumps(make_results({"xcopa_sw": task}, name))
            (tmp_path / name / "results_1.json").write_text(results)
        run = cli("card", folder, "--harness", tmp_path / "dense", tmp_path / "pruned" / "results_1.json")
        assert run.code == 0, run.err
        first = (folder / "README.md").read_text()
        assert "-0.1000" in first.partition("### Benchmarks per language")[2].partition("###")[0]
        assert cli("card", folder).code == 0
        assert (folder / "README.md").read_text() == first
        assert cli("compress", folder, small).code == 0
        assert [each.metric_value for each in ModelCard.load(small / "README.md").data.eval_results] == [0.5]

    def test_benchmarks_that_cannot_be_read_are_a_data_error(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        AutoModelForCausalLM.from_pretrained(pruned.path).save_pretrained(folder)
        run = cli("card", folder, "--harness", tmp_path, pruned.path)
        assert run.code == 3
        assert "results_*.json" in run.error
        (folder / "harness.json").write_text("{}")
        run = cli("card", folder)
        assert run.code == 3
        assert "harness.json" in run.error

    def test_repository_stays_known_whatever_class_loads_the_model(self, cli: Cli, tmp_path: Path) -> None:
        model = MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform")).apply(make_family("t5"))
        model.save_pretrained(tmp_path)
        assert cli("card", tmp_path, "--repo-id", "me/pruned").code == 0
        assert cli("card", tmp_path).code == 0
        assert 'AutoModelForSeq2SeqLM.from_pretrained("me/pruned")' in (tmp_path / "README.md").read_text()

    def test_base_of_the_dense_models_card_is_not_taken_for_ours(
        self, cli: Cli, pruned: Pruned, tmp_path: Path
    ) -> None:
        AutoModelForCausalLM.from_pretrained(pruned.path).save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("---\nbase_model: acme/base-of-the-base\n---\n# Dense\n")
        assert cli("card", tmp_path).code == 0
        assert "prune path/to/tiny" in (tmp_path / "README.md").read_text()


class TestCompress:
    def test_there_and_back(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        small, large = tmp_path / "small", tmp_path / "large"
        run = cli("compress", pruned.path, small, "--json")
        assert run.code == 0, run.err
        assert run.json["bytes"] < run.json["input_bytes"]
        assert "All 21 matrices" in cli("inspect", small).out
        assert cli("decompress", small, large).code == 0
        assert (large / "model.safetensors").read_bytes() == (pruned.path / "model.safetensors").read_bytes()
        assert ModelCard.load(large / "README.md").data.eval_results
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]

    def test_experts_that_are_stored_one_by_one(self, cli: Cli, tmp_path: Path) -> None:
        model = MWandaPruner(MWandaConfig(criterion="magnitude", allocation="uniform")).apply(make_family("mixtral"))
        dense, small, large = (tmp_path / name for name in ("dense", "small", "large"))
        model.save_pretrained(dense)
        assert cli("compress", dense, small).code == 0
        assert cli("decompress", small, large).code == 0
        for folder in (dense, small, large):
            assert "All 12 matrices hold as many zeros" in cli("inspect", folder).out
        assert (large / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()

    def test_card_says_how_to_load(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        small, again = tmp_path / "small", tmp_path / "again"
        assert cli("compress", pruned.path, small).code == 0
        assert cli("decompress", small, again).code == 0
        cards = [(path / "README.md").read_text() for path in (pruned.path, small, again)]
        assert "import optimum_mwanda" in cards[1]
        assert cards[0] != cards[1] != cards[2]

    def test_size_is_that_from_before_when_out_replaces_in(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        folder = shutil.copytree(pruned.path, tmp_path / "model")
        before = sum(path.stat().st_size for path in folder.iterdir())
        run = cli("compress", folder, folder, "--overwrite", "--json")
        assert run.code == 0, run.err
        assert run.json["bytes"] < run.json["input_bytes"] == before

    @pytest.mark.parametrize("damage", ["evaluation", "settings", "card"])
    def test_card_that_cannot_be_updated_is_a_warning(
        self, cli: Cli, pruned: Pruned, tmp_path: Path, damage: str
    ) -> None:
        folder, small = Path(shutil.copytree(pruned.path, tmp_path / "model")), tmp_path / "small"
        if damage == "evaluation":
            (folder / "evaluation.json").write_text("{")
        elif damage == "card":
            (folder / "README.md").write_text("---\nlicense: [\n---\n# T\n")
        else:
            change_record(folder, settings={"of_later": 1})
        run = cli("compress", folder, small)
        assert run.code == 0, run.err
        assert "warning: README.md stays as it was" in run.error
        assert str(tmp_path) not in run.error
        assert (small / "README.md").read_bytes() == (folder / "README.md").read_bytes()
        assert verify_sparsity(small).ok

    def test_errors_leave_nothing(self, cli: Cli, pruned: Pruned, tmp_path: Path) -> None:
        assert cli("compress", tmp_path / "none", tmp_path / "out").code == 4
        assert cli("decompress", pruned.path, tmp_path / "out").code == 4
        assert list(tmp_path.iterdir()) == []


def test_weights_that_are_missing_are_not_made_up(cli: Cli, tmp_path: Path) -> None:
    loaded = make_model()
    state = {name: tensor for name, tensor in loaded.state_dict().items() if "up_proj" not in name}
    loaded.save_pretrained(tmp_path / "torn", state_dict=state)
    words = ("--criterion", "magnitude", "--allocation", "uniform", "--quiet")
    run = cli("prune", tmp_path / "torn", tmp_path / "out", *words)
    assert run.code == 4
    assert "lack 3 weights" in run.err


def test_pickle_needs_a_flag(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pickle"
    make_model().config.save_pretrained(folder)
    torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    words = ("--criterion", "magnitude", "--allocation", "uniform", "--quiet")
    run = cli("prune", folder, tmp_path / "out", *words)
    assert run.code == 4
    assert "--allow-pickle" in run.error
    run = cli("prune", folder, tmp_path / "out", *words, "--allow-pickle")
    assert run.code == 0, run.err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_prune_says_what_it_was_calibrated_on_and_how_long_it_took(
    cli: Callable[..., Run], pruned: Pruned, model: Path, data: Path, tmp_path: Path
) -> None:
    assert re.match(r"Pruned in \d+ s, calibrated on:\n\n\| language \| rows \| tokens \| chunks \|", pruned.run.out)
    run = cli("prune", model, tmp_path / "a", "--dataset", data, "--json", "--calibration", "sequential", *SMALL)
    assert run.json["seconds"] > 0
    assert {name: entry["chunks"] for name, entry in run.json["coverage"].items()} == {"en": 3, "fr": 3, "sw": 3}
    run = cli("prune", model, tmp_path / "b", "--criterion", "magnitude", "--allocation", "uniform", "--quiet")
    assert re.match(r"Pruned in \d+ s\.\n", run.out)
