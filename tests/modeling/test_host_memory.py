"""What is on a GPU is copied part by part."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mwanda.modeling import host_memory
from optimum_mwanda.modeling.host_memory import to_host


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(4, 200), st.booleans())
def test_parts_make_up_the_whole(shape: list[int], part: int, turned: bool) -> None:
    values = torch.randn(shape).bfloat16()
    values = values.movedim(0, -1) if turned else values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_memory, "_PART", part)
        staging = torch.empty(host_memory._entries_at_a_time(values), dtype=values.dtype)  # on a GPU, pinned
    assert len(staging) == values[0].numel() or staging.nbytes <= part
    copied = host_memory._copied_through(staging, values)
    assert torch.equal(copied, values)
    assert copied.is_contiguous()


def test_what_is_in_host_memory_is_copied_only_if_asked() -> None:
    values = torch.ones(3)
    assert to_host(values).data_ptr() == values.data_ptr()
    assert to_host(values, copy=True).data_ptr() != values.data_ptr()
