"""`--harness` of `card` and `evaluate`: whose results they are."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from optimum_mwanda.commands.saving import repositories_on_card
from optimum_mwanda.sharing.card_update import BEGIN, END

from ..evaluation.harness.test_results import TASKS, make_results
from .conftest import Pruned, Run

Cli = Callable[..., Run]


@pytest.fixture
def folder(pruned: Pruned, tmp_path: Path) -> Path:
    """A pruned model without a card, the only thing in its folder."""
    return Path(shutil.copytree(pruned.path, tmp_path / "pruned-50", ignore=shutil.ignore_patterns("README.md")))


def results(path: Path, model: str | Path, accuracy: float = 0.6) -> Path:
    """A results file of the harness that says which model it is of."""
    task = TASKS["xcopa_sw"] | {"values": {"acc,none": accuracy}}
    path.write_text(json.dumps(make_results({"xcopa_sw": task}, str(model))))
    return path


def test_results_that_are_swapped_are_refused(cli: Cli, folder: Path, model: Path, tmp_path: Path) -> None:
    dense, pruned = results(tmp_path / "dense.json", model), results(tmp_path / "pruned.json", folder)
    run = cli("card", folder, "--harness", pruned, dense)
    assert run.code == 2
    assert f"the first results are of '{folder}', which is the pruned model" in run.error
    assert {"README.md", "harness.json"}.isdisjoint(path.name for path in folder.iterdir())
    assert cli("card", folder, "--harness", dense, pruned).code == 0


@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_results_of_another_model_are_shown_with_a_warning(
    cli: Cli, folder: Path, model: Path, tmp_path: Path, kind: str
) -> None:
    dense, name = results(tmp_path / "dense.json", model), str(model) if kind == "folder" else "acme/base"
    run = cli("card", folder, "--harness", dense, results(tmp_path / "other.json", name), "--repo-id", "me/small")
    assert run.code == 0
    assert f"warning: --harness: the second results are of '{name}'" in run.error
    assert (folder / "harness.json").is_file()


def test_folder_of_the_same_name_elsewhere_is_another_model(
    cli: Cli, folder: Path, model: Path, tmp_path: Path
) -> None:
    (other := tmp_path / "other" / folder.name).mkdir(parents=True)
    run = cli(
        *("card", folder, "--harness"), results(tmp_path / "dense.json", model), results(tmp_path / "other.json", other)
    )
    assert "the second results are of" in run.error


@pytest.mark.parametrize(
    "name", ["{folder}", "pruned-50", "gone/pruned-50/", "somebody/pruned-50", "me/small", "you/small"]
)
def test_results_of_this_model_give_no_warning(
    cli: Cli, folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As a path, here or where the harness ran, and as a repository, in whatever namespace."""
    monkeypatch.chdir(tmp_path)
    dense = results(tmp_path / "dense.json", model)
    pruned = results(tmp_path / "pruned.json", name.format(folder=folder), accuracy=0.5)
    run = cli("card", folder.name, "--harness", dense, pruned, "--repo-id", "me/small")
    assert (run.code, run.err) == (0, "")
    assert "-0.1000" in (folder / "README.md").read_text()


def test_repository_that_an_earlier_card_names_is_known(cli: Cli, folder: Path, model: Path, tmp_path: Path) -> None:
    assert cli("card", folder, "--repo-id", "me/small").code == 0
    dense, pruned = results(tmp_path / "dense.json", model), results(tmp_path / "pruned.json", "me/small")
    assert cli("card", folder, "--harness", dense, pruned).err == ""


def test_page_of_an_evaluation_shows_them(cli: Cli, folder: Path, model: Path, data: Path, tmp_path: Path) -> None:
    dense, pruned = results(tmp_path / "dense.json", model), results(tmp_path / "pruned.json", folder, accuracy=0.55)
    words = ("evaluate", folder, "--dataset", data, "--sequence-length", "16", "--quiet", "--harness")
    run = cli(*words, dense, pruned, "--report", tmp_path / "page.html")
    assert run.code == 0, run.err
    assert ">xcopa" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli(*words, dense, pruned).code == 2
    assert cli(*words, pruned, dense, "--report", tmp_path / "swapped.html").code == 2
    assert not (tmp_path / "swapped.html").exists()


def test_names_that_are_alike_say_nothing_of_the_order(cli: Cli, folder: Path, tmp_path: Path) -> None:
    # The harness was run with pretrained=pruned-50 in two directories.
    dense, pruned = results(tmp_path / "dense.json", folder.name), results(tmp_path / "pruned.json", folder.name)
    run = cli("card", folder, "--harness", dense, pruned)
    assert (run.code, run.err) == (0, "")


def test_swapped_results_of_repositories_are_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    dense, pruned = results(tmp_path / "dense.json", "acme/base"), results(tmp_path / "pruned.json", "me/small")
    assert cli("card", folder, "--harness", pruned, dense, "--repo-id", "me/small").code == 2
    assert cli("card", folder, "--harness", dense, pruned, "--repo-id", "me/small").code == 0


def test_link_out_of_the_folder_is_neither_read_nor_written_through(cli: Cli, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (folder / "README.md").symlink_to(tmp_path / "mine.txt")
    run = cli("card", folder)
    assert run.code == 4
    assert "is a link to" in run.error
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_card_is_replaced_only_by_one_that_is_complete(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "README.md").write_text("My own words.\n")

    def half(self: ModelCard, path: Path) -> None:
        Path(path).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ModelCard, "save", half)
    assert cli("card", folder).code == 4
    assert (folder / "README.md").read_text() == "My own words.\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", "<img src=x onerror=alert(1)>\n\n# Buy"),
        ("value", "1.0"),
        ("stderr", "<b>"),
        ("higher_is_better", "yes"),
        ("benchmark", 3),
        ("samples", True),
    ],
)
def test_results_with_values_of_other_types_are_refused(
    cli: Cli, folder: Path, model: Path, tmp_path: Path, field: str, value: object
) -> None:
    dense, pruned = results(tmp_path / "dense.json", model), results(tmp_path / "pruned.json", folder)
    assert cli("card", folder, "--harness", dense, pruned).code == 0
    kept = json.loads((folder / "harness.json").read_text())
    for report in (kept["dense"], *kept["pruned"].values()):
        report["scores"][0][field] = value
    (folder / "harness.json").write_text(json.dumps(kept))
    before = (folder / "README.md").read_text()
    run = cli("card", folder)
    assert run.code == 3
    assert f"{field} is " in run.error
    assert (folder / "README.md").read_text() == before


def test_evaluation_with_values_of_other_types_is_refused(cli: Cli, folder: Path) -> None:
    kept = json.loads((folder / "evaluation.json").read_text())
    kept["dense"]["sequence_length"] = "<b>16</b>"
    (folder / "evaluation.json").write_text(json.dumps(kept))
    run = cli("card", folder)
    assert (run.code, "sequence_length is '<b>16</b>'" in run.error) == (3, True)


def test_long_words_of_a_foreign_readme_are_read_in_one_go(tmp_path: Path) -> None:
    """With a pattern that has no bounds this took minutes."""
    card = tmp_path / "README.md"
    card.write_text(f'{BEGIN}\n{"AutoModel" * 100_000}\nAutoModel.from_pretrained("me/small")\n{END}\n')
    assert repositories_on_card(card) == {"repo_id": "me/small"}
