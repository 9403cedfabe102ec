"""What the docs tell people to run can be run in one folder, one command after the other."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
WRITES = {"prune": 1, "recover": 1, "apply": 2, "calibrate": 1, "search": 1, "compress": 1, "decompress": 1, "write": 1}
"""Command to the place of what it writes among its arguments without a flag."""

FLAGS = ("--output", "--trials", "--tables", "--plots", "--report")


def commands(page: Path) -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("optimum-cli mwanda ")]


def outputs(words: list[str]) -> list[str]:
    command, *arguments = words
    plain = list(itertools.takewhile(lambda word: not word.startswith("--"), arguments))
    found = plain[WRITES[command] : WRITES[command] + 1] if command in WRITES else []
    if command != "card" and "--tables-only" not in arguments:
        found += [after for flag, after in itertools.pairwise(arguments) if flag in FLAGS]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_two_commands_of_a_page_write_to_one_place(page: Path) -> None:
    written = [name for words in commands(page) for name in outputs(words)]
    written += re.findall(r'^model\.save_pretrained\("([^"]+)"\)', page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in {*written} if written.count(name) > 1] == []


def test_commands_of_cli_search_and_compare_write_to_places_of_their_own() -> None:
    written = [
        name
        for page in ("cli", "search", "compare", "extending")
        for words in commands(ROOT / "docs" / f"{page}.md")
        for name in outputs(words)
    ]
    assert len(written) > 12
    assert sorted({*written}) == sorted(written)
