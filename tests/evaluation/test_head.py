"""Logits some tokens at a time, against those of the whole batch."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import PreTrainedModel

from optimum_mwanda import PerplexityReport, evaluate_languages
from optimum_mwanda.evaluation import head
from tests.conftest import make_model, make_rows
from tests.families.matrix import FAMILIES
from tests.training.test_distillation import Large

ROWS = make_rows("en fr", rows=3, length=24)


def evaluate(model: PreTrainedModel) -> PerplexityReport:
    return evaluate_languages(model, None, ROWS, sequence_length=12, batch_size=4, progress=False)


def plain(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> PerplexityReport:
    """The same, with the logits that the model itself gives."""
    with monkeypatch.context() as patch:
        patch.setattr(head.HeadInParts, "_plain_head", lambda self: None)
        return evaluate(model)


def assert_same(found: PerplexityReport, expected: PerplexityReport) -> None:
    for language, score in expected.scores.items():
        assert found.scores[language].nll == pytest.approx(score.nll, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "gpt2", "mixtral"])
def test_no_logits_of_a_whole_batch_are_computed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[family].make()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(head, "_ENTRIES", 4 * vocabulary)
    with Large(12 * vocabulary) as large:  # a window of a batch of four
        found = evaluate(model)
    assert not [each for each in large.known.values() if each.shape[-1] == vocabulary]
    assert_same(found, plain(model, monkeypatch))
    assert "forward" not in vars(model.get_output_embeddings())


def test_a_model_that_does_something_unknown_with_its_logits_computes_them_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    forward = model.forward
    runs: list[Tensor] = []

    def odd(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits.roll(1, -1) + torch.arange(output.logits.shape[1])[:, None] % 3
        runs.append(output.logits)
        return output

    monkeypatch.setattr(model, "forward", odd)
    found = evaluate(model)
    batches = len(runs) - 1  # the first was run twice
    assert_same(found, plain(model, monkeypatch))
    assert len(runs) == 2 * batches + 1


def test_logits_that_change_in_place_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    forward = model.forward

    def doubling(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits.mul_(2)
        return output

    monkeypatch.setattr(model, "forward", doubling)
    assert_same(evaluate(model), plain(model, monkeypatch))


def test_a_compiled_head_is_left_alone() -> None:
    model = make_model()
    model.get_output_embeddings().compile(backend="eager")
    assert not head.HeadInParts(model).is_open
    assert head.HeadInParts(make_model()).is_open


def test_weights_that_are_only_there_while_the_model_runs_are_not_read_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = plain(make_model(), monkeypatch)
    model = make_model()
    cpu_offload(model, execution_device="cpu", preload_module_classes=[type(model).__name__])
    assert model.get_output_embeddings().weight.is_meta
    assert_same(evaluate(model), expected)


def test_a_head_with_hooks_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.get_output_embeddings().register_forward_hook(lambda _, __, x: x * torch.arange(1, x.shape[1] + 1)[:, None])
    assert_same(evaluate(model), plain(model, monkeypatch))
