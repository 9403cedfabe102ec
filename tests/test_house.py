"""The rules by which the package is built, as `docs/architecture.md` states them."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import optimum_mwanda

ROOT = Path(optimum_mwanda.__file__).parent
FLOORS = (
    ("version", "values", "utils", "config_file", "presets"),
    ("legal", "registry"),
    ("implied", "combinations"),
    ("configuration",),
    ("modeling", "processes"),
    ("data", "storage"),
    ("calibration", "evaluation"),
    ("pruning",),
    ("walking", "record"),
    ("reporting", "choosing"),
    ("sharing",),
    ("execution",),
    ("pruner",),
    ("loading", "experiments", "training"),
    ("commands",),
)
"""Rooms and modules from the ground up."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[tuple[str, ...]]:
    """Paths of the modules of the package that a module imports, at its head, inside functions, or for types only."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {target} if node.module else {(*base, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    for target in imported(path):
        assert target[0] == here or FLOOR[target[0]] < FLOOR[here], f"{here} imports {'.'.join(target)}"


def test_modules_of_a_room_import_each_other_in_no_circle() -> None:
    names = {path.relative_to(ROOT).with_suffix("").parts: path for path in MODULES}
    below = {name: {target for target in imported(path) if target in names} for name, path in names.items()}
    while ready := [name for name, targets in below.items() if not targets & below.keys()]:
        for name in ready:
            del below[name]
    assert not below, f"these import each other: {sorted('.'.join(name) for name in below)}"


def test_no_two_modules_have_one_name() -> None:
    counts = Counter(path.stem for path in MODULES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_modules_fit_on_a_few_screens() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}
