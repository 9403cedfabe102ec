"""Memory of files that is handed back keeps what it holds."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from optimum_mwanda.storage.pages import release_pages


def resident() -> int:
    """Bytes of mapped files that this process has in memory."""
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 0 if found is None else int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="needs the memory advice of Linux")
def test_pages_of_a_file_go_and_come_back(tmp_path: Path) -> None:
    values = torch.arange(2**22, dtype=torch.float32)
    folder = tmp_path / "a folder"
    folder.mkdir()
    save_file({"a": values}, folder / "file.safetensors")
    with safe_open(folder / "file.safetensors", "pt") as file:
        tensor = file.get_tensor("a")
        assert torch.equal(tensor, values)
        before = resident()
        release_pages(tmp_path / "a fold")
        assert resident() > before - values.nbytes // 2  # that is another folder
        release_pages(folder)
        assert resident() < before - values.nbytes // 2
        assert torch.equal(tensor, values)
