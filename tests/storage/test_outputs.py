"""Files and folders appear as a whole or not at all."""

from pathlib import Path

import pytest

from optimum_mwanda.storage.outputs import new_folder, whole_file, write_text


def test_empty_folder_and_link_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        write_text(tmp_path / "deep" / "out" / "old", "old")
    before = sorted(tmp_path.rglob("*"))

    def fill() -> None:
        with new_folder(tmp_path / "deep" / "out", overwrite) as folder:
            (folder / "new").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_that_holds_something_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / "old", "old")
    with pytest.raises(FileExistsError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (tmp_path / "out" / "old").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_must_not_be_deleted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in ("..", tmp_path):
        with pytest.raises(OSError, match="would delete"), new_folder(path, overwrite=True):
            pass


def test_file_in_the_place_or_in_the_path_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"), new_folder(tmp_path / "out", overwrite=True):
        pass
    with pytest.raises(OSError, match="cannot be written"), new_folder(tmp_path / "out" / "deeper"):
        pass


def test_file_is_replaced_only_by_one_that_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "made" / "file"
    write_text(target, "old")

    def fail() -> None:
        with whole_file(target) as partial:
            partial.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file"]
