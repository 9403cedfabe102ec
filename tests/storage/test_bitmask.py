import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimum_mwanda.storage import bitmask
from optimum_mwanda.storage.bitmask import Form, check_lengths, choose_form, decode, encode
from tests.reference import stored as reference

DTYPES = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float8_e4m3fn: torch.int8,
    torch.float64: torch.int64,
}


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits_of(one), bits_of(other))


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit pattern: NaN of every payload, infinities, both zeros, subnormals."""
    width = torch.empty((), dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, width), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def prune_randomly(tensor: Tensor, share: float, seed: int) -> Tensor:
    pruned = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)) < share
    bits_of_type = DTYPES[tensor.dtype]
    return tensor.view(bits_of_type).masked_fill(pruned, 0).view(tensor.dtype)


def prune_to(tensor: Tensor, kept: int, run: int) -> Tensor:
    order = torch.rand(tensor.numel() // run, run, generator=torch.Generator().manual_seed(0)).argsort(1)
    bits = tensor.view(DTYPES[tensor.dtype]).view(-1, run)
    return bits.masked_fill(order < run - kept, 0).view(tensor.dtype).view(tensor.shape)


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.lists(st.integers(1, 24), min_size=2, max_size=3).map(tuple),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_any_bits_come_back_from_a_bitmask(dtype: torch.dtype, shape: tuple[int, ...], share: float, seed: int) -> None:
    tensor = prune_randomly(random_bits(shape, dtype, seed), share, seed)
    form = Form(shape)
    values, code = encode(tensor, form)
    assert len(code) == math.ceil(tensor.numel() / 8)
    assert same_bits(decode("w", form, values, code), tensor)


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)),
    run=st.sampled_from(bitmask.RUNS),
    groups=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_any_bits_come_back_from_groups_even_where_more_is_zero_than_the_pattern_asks(
    dtype: torch.dtype, run: int, groups: tuple[int, int], data: st.DataObject, share: float, seed: int
) -> None:
    kept = data.draw(st.integers(1, run - 1))
    shape = (groups[0], groups[1] * run)
    tensor = prune_randomly(prune_to(random_bits(shape, dtype, seed), kept, run), share, seed)
    form = Form(shape, kept, run)
    values, code = encode(tensor, form)
    assert len(values) == tensor.numel() // run * kept
    assert same_bits(decode("w", form, values, code), tensor)


@pytest.mark.parametrize(("kept", "run"), [(1, 2), (2, 4), (3, 4), (1, 8), (3, 8), (4, 8), (1, 16), (8, 16), (13, 16)])
@pytest.mark.parametrize("groups", [(1, 1), (3, 5), (7, 16)])
def test_codes_are_those_that_the_page_of_the_format_describes(kept: int, run: int, groups: tuple[int, int]) -> None:
    shape = (groups[0], groups[1] * run)
    tensor = prune_randomly(prune_to(torch.randn(shape), kept, run), 0.1, run)
    code, stored = reference.code_of_runs((tensor.view(-1) != 0).tolist(), kept, run)
    found = encode(tensor, Form(shape, kept, run))
    assert found[1].numpy().tobytes() == code
    assert same_bits(found[0], tensor.view(-1)[stored])


def test_codes_by_hand() -> None:
    # Of the six choices of two among four, 0b0011 is the first and 0b1100 the last; three bits each.
    tensor = torch.tensor([[5.0, 6, 0, 0, 0, 0, 7, 8, 0, 0, 0, 9]])
    values, code = encode(tensor, Form((1, 12), 2, 4))
    assert values.tolist() == [5, 6, 7, 8, 0, 9]
    assert code.tolist() == [0b11_101_000, 0b0]  # 0, 5 and 3, of 0b1001, the highest bit in the second byte


@pytest.mark.parametrize("form", [Form((4, 32)), Form((4, 32), 2, 4)])
def test_where_new_tensors_are_made_does_not_matter(form: Form) -> None:
    tensor = prune_to(torch.randn(4, 32), 2, 4)
    values, code = encode(tensor, form)
    with torch.device("meta"):
        decoded = decode("w", form, values, code)
    assert same_bits(decoded, tensor)


@pytest.mark.parametrize("form", [Form((3, 304)), Form((3, 304), 4, 16), Form((3, 304), 2, 4)])
def test_tensors_of_several_chunks_come_back(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_bits(form.shape, torch.float16, 1)
    if form.run:
        tensor = prune_to(tensor, form.kept, form.run)
    whole = encode(tensor, form)
    monkeypatch.setattr(bitmask, "_CHUNK", 128)
    in_parts = encode(tensor, form)
    assert all(same_bits(one, other) for one, other in zip(whole, in_parts, strict=True))
    assert same_bits(decode("w", form, *whole), tensor)
    monkeypatch.setattr(bitmask, "_CACHED", 40)
    assert same_bits(decode("w", form, *whole), tensor)
    assert choose_form(prune_to(torch.ones(64, 64), 2, 4)) == Form((64, 64), 2, 4)


def test_negative_zero_is_a_value_and_nan_payloads_survive() -> None:
    bits = [0x80000000, 0, 0x7FC12345, 0xFFA00001, 0, 0x00000001, 0x7F800000, 0]
    tensor = torch.frombuffer(bytearray(struct.pack("<8I", *bits)), dtype=torch.float32).view(2, 4)
    values, code = encode(tensor, Form((2, 4)))
    assert len(values) == 5
    assert same_bits(decode("w", Form((2, 4)), values, code), tensor)


@pytest.mark.parametrize(
    ("pattern", "share"),
    [((2, 4), 8.75 / 16), ((4, 8), 8.875 / 16), ((1, 4), 4.5 / 16), ((8, 16), 8.875 / 16), ((1, 2), 8.5 / 16)],
)
def test_pattern_is_found_in_the_weights_and_takes_its_share_of_the_dense_size(
    pattern: tuple[int, int], share: float
) -> None:
    tensor = prune_to(torch.randn(64, 256).bfloat16(), *pattern)
    form = choose_form(tensor)
    assert form == Form((64, 256), *pattern)
    values, code = encode(tensor, form)
    assert (values.nbytes + code.nbytes) / tensor.nbytes == share


def test_half_of_bfloat16_takes_nine_sixteenths() -> None:
    tensor = torch.ones(128, 128)
    tensor.view(-1)[torch.randperm(128 * 128, generator=torch.Generator().manual_seed(0))[: 128 * 64]] = 0
    tensor = tensor.bfloat16()
    form = choose_form(tensor)
    assert form == Form((128, 128))
    values, code = encode(tensor, form)
    assert (values.nbytes + code.nbytes) / tensor.nbytes == 9 / 16


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(64, 64),
        torch.zeros(8, 8),
        torch.zeros(4096),
        torch.zeros(64, 64, dtype=torch.int64),
        torch.zeros(0, 64),
        prune_randomly(torch.ones(64, 64), 0.02, 0),
    ],
    ids=["dense", "small", "one-dimensional", "integers", "empty", "few-zeros"],
)
def test_tensor_that_gains_nothing_is_left_alone(tensor: Tensor) -> None:
    assert choose_form(tensor) is None


def test_all_zeros_come_back() -> None:
    tensor = torch.zeros(64, 64, dtype=torch.bfloat16)
    form = choose_form(tensor)
    assert form == Form((64, 64))
    assert same_bits(decode("w", form, *encode(tensor, form)), tensor)


def test_transposed_view_comes_back() -> None:
    tensor = prune_randomly(torch.randn(48, 64), 0.5, 0).T
    form = choose_form(tensor)
    assert form is not None
    assert same_bits(decode("w", form, *encode(tensor, form)), tensor.contiguous())


@pytest.mark.parametrize(
    "numbers",
    [[], [0], [0, 0], [0, 0, 0], [0, 0, -1, 4], [0, 0, 4, 0], [2, 4, 4, 6], [0, 4, 4, 4], [4, 4, 4, 4], [1, 0, 4],
     [5, 4, 4, 4], [-1, 4, 4, 4], [1, 3, 3, 3], [1, -4, 4, 4], [0, 0, *[2] * 9]],
)  # fmt: skip
def test_numbers_that_are_no_form_are_refused_by_name(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"'layers\.0\.weight' cannot be decoded"):
        Form.from_list("layers.0.weight", numbers)


@pytest.mark.parametrize(("values", "code"), [(31, 6), (33, 6), (32, 5), (32, 7), (32, 0)])
def test_lengths_that_contradict_a_pattern_are_refused_without_data(values: int, code: int) -> None:
    form = Form((4, 16), 2, 4)
    check_lengths("w", form, 32, 6)
    with pytest.raises(ValueError, match="'w' cannot be decoded"):
        check_lengths("w", form, values, code)


def test_huge_shape_is_refused_before_anything_of_its_size_is_made() -> None:
    with pytest.raises(ValueError, match="needs a code of"):
        decode("w", Form((2**62, 2**62)), torch.ones(4), torch.zeros(1, dtype=torch.uint8))


@settings(max_examples=2000, deadline=None)
@given(
    numbers=st.tuples(st.integers(-1, 9), st.sampled_from([-1, 0, 0, 2, 4, 8, 16, 5]), st.integers(-1, 9))
    .flatmap(lambda head: st.lists(st.integers(0, 40) | st.integers(), max_size=2).map(lambda tail: [*head, *tail])),
    values=st.integers(0, 80),
    code=st.binary(max_size=40),
    dtype=st.sampled_from([*DTYPES, torch.int32]),
)  # fmt: skip
def test_arbitrary_parts_are_decoded_faithfully_or_refused_by_name(
    numbers: list[int], values: int, code: bytes, dtype: torch.dtype
) -> None:
    stored = torch.arange(1, values + 1).to(dtype)
    packed = torch.tensor(list(code), dtype=torch.uint8)
    _decode_or_refuse(numbers, stored, packed)


@settings(max_examples=2000, deadline=None)
@given(
    form=st.sampled_from([Form((5, 7)), Form((3, 16), 2, 4), Form((2, 8), 3, 8), Form((2, 16), 8, 16)]),
    position=st.integers(0, 2**16),
    change=st.integers(1, 255),
    longer=st.sampled_from([0, 0, 0, 1, -1]),
    extra=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_code_with_a_changed_byte_is_decoded_faithfully_or_refused_by_name(
    form: Form, position: int, change: int, longer: int, extra: int
) -> None:
    tensor = torch.arange(1, form.numel + 1, dtype=torch.float32).view(form.shape)
    tensor = prune_to(tensor, form.kept, form.run) if form.run else prune_randomly(tensor, 0.5, 0)
    values, code = encode(tensor, form)
    code[position % len(code)] ^= change
    code = torch.cat([code, code[:1]]) if longer > 0 else code[: len(code) + longer]
    values = torch.cat([values, values[:1]]) if extra > 0 else values[: len(values) + extra]
    _decode_or_refuse(form.to_list(), values, code)


def _decode_or_refuse(numbers: list[int], values: Tensor, code: Tensor) -> None:
    try:
        form = Form.from_list("w", numbers)
        tensor = decode("w", form, values, code)
    except ValueError as error:
        assert "'w' cannot be decoded" in str(error)  # noqa: PT017
        return
    # What is decoded holds every stored value once, in order, and zeros elsewhere.
    assert tensor.shape == form.shape
    assert tensor.dtype == values.dtype
    assert bits_of(tensor[tensor != 0]).equal(bits_of(values[values != 0]))
