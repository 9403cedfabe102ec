from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from optimum_mwanda.calibration.gram import (
    GramCollector,
    ProductCollector,
    Watched,
    add_products,
    new_strips,
    to_matrix,
)
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks
from optimum_mwanda.modeling.inputs import See, watch_inputs
from optimum_mwanda.modeling.weights import PrunableWeight, find_weights
from tests.families.matrix import FAMILIES

LANGUAGES = {"en": 0.5, "fr": 0.3, "sw": 0.2}


def ids(seed: int, length: int = 20) -> Tensor:
    return torch.randint(3, 150, (2, length), generator=torch.Generator().manual_seed(seed))


TEXT = {"en": [ids(0), ids(1)], "fr": [ids(2)], "sw": [ids(3, 7), ids(4, 30)]}


def collect(model: PreTrainedModel, groups: list[list[PrunableWeight]], shares: dict[str, float]) -> dict[str, Tensor]:
    blocks = find_blocks(model)
    with inference_mode(model), GramCollector(groups, shares) as grams:
        for language, batches in TEXT.items():
            for batch in batches:
                grams.start(language)
                run_blocks(model, blocks, {"input_ids": batch})
    return grams.finish()


def expected(model: PreTrainedModel, weight: PrunableWeight, shares: dict[str, float]) -> np.ndarray:
    """`Σ_l w_l XᵀX / tr XᵀX` in float64."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    blocks = find_blocks(model)
    for language, batches in TEXT.items():
        with (
            inference_mode(model),
            watch_inputs([weight], lambda _, x, kept=inputs[language]: kept.append(x.flatten(0, -2))),
        ):
            for batch in batches:
                run_blocks(model, blocks, {"input_ids": batch})
    total = np.zeros((weight.in_features, weight.in_features))
    for language, parts in inputs.items():
        x = torch.cat(parts).double().numpy()
        total += shares[language] * (x.T @ x) / np.square(x).sum()
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_languages_count_by_their_weight_whatever_their_text(family: str) -> None:
    model = FAMILIES[family].make()
    weights = find_weights(find_blocks(model))["transformer.h.1" if family == "gpt2" else "model.layers.1"]
    grams = collect(model, [[weight] for weight in weights], LANGUAGES)
    assert grams.keys() == {weight.name for weight in weights}
    for weight in weights[:3] + weights[-3:]:
        np.testing.assert_allclose(grams[weight.name], expected(model, weight, LANGUAGES), rtol=1e-4, atol=1e-6)
        assert float(grams[weight.name].trace()) == pytest.approx(1, rel=1e-4)


def test_a_group_is_summed_once_and_experts_each_by_itself() -> None:
    model = FAMILIES["mixtral"].make()
    weights = {w.name.removeprefix("model.layers.0."): w for w in find_weights(find_blocks(model))["model.layers.0"]}
    attention = [weights[f"self_attn.{name}_proj"] for name in "qkv"]
    experts = [weights[f"mlp.experts.{expert}.gate_up_proj"] for expert in range(4)]
    grams = collect(model, [attention, experts], LANGUAGES)
    query, key, value = (grams[weight.name] for weight in attention)
    assert query is key is value
    for weight in experts:
        np.testing.assert_allclose(grams[weight.name], expected(model, weight, LANGUAGES), rtol=1e-4, atol=1e-6)


def test_a_language_without_weight_leaves_no_trace() -> None:
    model = FAMILIES["llama"].make()
    weights = find_weights(find_blocks(model))["model.layers.0"][:1]
    some = collect(model, [weights], {"en": 1.0, "fr": 0.0, "sw": 0.0})
    (gram,) = some.values()
    np.testing.assert_allclose(
        gram, expected(model, weights[0], {"en": 1.0, "fr": 0.0, "sw": 0.0}), rtol=1e-4, atol=1e-6
    )


def test_a_wide_gram_matrix_takes_little_more_than_half_of_a_whole_product() -> None:
    x = torch.randn(40, 1100, generator=torch.Generator().manual_seed(0))
    strips = [strip.zero_() for strip in new_strips(1100, x.device)]
    assert sum(strip.numel() for strip in strips) < 0.6 * 1100**2
    with FlopCounterMode(display=False) as counter:
        for part in torch.split(x, 16):
            add_products(strips, part)
    torch.testing.assert_close(to_matrix(strips), x.T @ x)
    assert counter.get_total_flops() < 0.6 * 2 * x.numel() * 1100
    assert not strips


def test_the_first_products_take_the_place_of_whatever_was_there() -> None:
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    found, expected = ([strip.fill_(value) for strip in new_strips(300, x.device)] for value in (torch.nan, 0))
    add_products(found, x, is_first=True)
    add_products(expected, x)
    assert torch.equal(to_matrix(found), to_matrix(expected))


class MadeMatrices(TorchDispatchMode):
    """Counts the matrices that are made."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        self.count += func._schema.name.startswith(("aten::new_", "aten::zeros", "aten::empty")) and (
            found.numel() == self.size
        )
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_memory_of_a_language_serves_the_next_one(dtype: torch.dtype) -> None:
    width, generator = 300, torch.Generator().manual_seed(0)
    text = {
        language: [torch.randn(tokens, width, generator=generator).to(dtype) for tokens in (70, 20)]
        for language in "abcde"
    }
    seers: list[See] = []

    @contextmanager
    def watch(see: See) -> Iterator[None]:
        seers.append(see)
        yield

    watched = Watched("x", width, torch.device("cpu"))
    with (
        MadeMatrices(new_strips(width, watched.device)[0].numel()) as made,
        ProductCollector([watched], watch, dict.fromkeys(text, 0.2), None) as grams,
    ):
        for language, batches in text.items():
            grams.start(language)
            for x in batches:
                seers[0]("x", x)
    found = grams.finish()["x"].double()
    assert made.count == 2
    expected = torch.zeros(width, width, dtype=torch.float64)
    for batches in text.values():
        x = torch.cat(batches).double()
        expected += 0.2 * (x.T @ x) / x.square().sum()
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_type_of_torch_does_not_matter(dtype: torch.dtype) -> None:
    model = FAMILIES["llama"].make()
    groups = [[weight] for weight in next(iter(find_weights(find_blocks(model)).values()))]
    plain = collect(model, groups, LANGUAGES)
    try:
        torch.set_default_dtype(dtype)
        found = collect(model, groups, LANGUAGES)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.allclose(found[name], gram, rtol=1e-3) for name, gram in plain.items())
    assert {gram.dtype for gram in found.values()} == {torch.float32}
