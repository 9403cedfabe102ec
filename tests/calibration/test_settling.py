"""A language is read no further once its ranking of channels has settled."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from optimum_mwanda import MWandaConfig, MWandaPruner
from optimum_mwanda.calibration.collector import StatisticsCollector
from optimum_mwanda.calibration.settling import TOKENS_PER_EXPERT, disagreement
from optimum_mwanda.data.chunks import build_chunks
from optimum_mwanda.modeling.blocks import find_blocks
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.processes.group import Processes
from optimum_mwanda.pruning import checks
from optimum_mwanda.record.verification import sparsity_record
from tests.conftest import SIZES, assert_untouched, make_model, make_rows, state_of
from tests.families.matrix import FAMILIES
from tests.walking.test_offloaded import on_disk

LENGTH, CHUNKS = 24, 20
SMALL: dict[str, Any] = {"sequence_length": LENGTH, "samples_per_language": CHUNKS}
TOLERANCE = 0.15


def rows(languages: str = "en fr") -> list[dict[str, object]]:
    return make_rows(languages, rows=CHUNKS, length=LENGTH)


def pruned(rows: Any, **settings: Any) -> tuple[dict[str, Tensor], MWandaPruner, Any]:
    pruner = MWandaPruner(MWandaConfig(**SMALL | settings), progress=False)
    model = pruner.prune(make_model(), rows)
    return state_of(model), pruner, sparsity_record(model)


def test_disagreement_is_the_share_of_channels_in_another_half() -> None:
    one = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([0.0, 0, 0, 9])}
    other = {"a": torch.tensor([3.0, 1, 2, 4]), "b": torch.tensor([0.0, 0, 0, 1])}
    assert disagreement(one, one) == 0
    assert disagreement({}, {}) == 1
    assert disagreement(one, other) == pytest.approx((2 / 4 + 0) / 2)
    assert disagreement({"a": one["a"]}, other) == pytest.approx((2 / 4 + 1) / 2)  # what was not reached before
    assert disagreement(one, {"a": other["a"]}) == pytest.approx(2 / 4)


def test_each_language_is_read_until_half_of_it_agrees_with_all_of_it() -> None:
    """The same from statistics of so many chunks, which know of nothing but what they read."""
    settled = MWandaPruner(MWandaConfig(**SMALL, calibration_tolerance=TOLERANCE), progress=False)
    found = {entry.language: entry.chunks for entry in settled.calibrate(make_model(), rows()).coverage}

    def weak(count: int) -> dict[str, list[np.ndarray]]:
        config = MWandaConfig(**SMALL | {"samples_per_language": count})
        statistics = MWandaPruner(config, progress=False).calibrate(make_model(), rows())
        return {
            language: [
                entry.square_sum[row].numpy().argsort().argsort() < (entry.square_sum.shape[1] + 1) // 2
                for entry in statistics.weights.values()
            ]
            for row, language in enumerate(statistics.languages)
        }

    by_count = {count: weak(count) for count in (1, 2, 4, 8, 16)}
    for language in ("en", "fr"):
        expected = CHUNKS
        for count in (2, 4, 8, 16):
            pairs = zip(by_count[count // 2][language], by_count[count][language], strict=True)
            if np.mean([np.mean(half != whole) for half, whole in pairs]) < TOLERANCE:
                expected = count
                break
        assert found[language] == expected
    assert len({*found.values()}) > 1, "the tolerance must tell the languages apart"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"calibration": "sequential", "allocation": "uniform"},
        {"refinement": "swap"},
        {"group": "matrix", "sensitivity": "fisher"},
        {"reconstruction": "block", "reconstruction_epochs": 1},
    ],
    ids=str,
)
def test_all_that_follows_reads_the_same_text(settings: dict[str, Any]) -> None:
    after, pruner, record = pruned(rows(), **settings, calibration_tolerance=TOLERANCE, batch_size=1)
    read = {entry.language: entry.chunks for entry in pruner.coverage}
    assert min(read.values()) < CHUNKS
    expected, _, other = pruned(rows(), **settings, samples_per_language=read, batch_size=1)
    assert all(torch.equal(after[name], expected[name]) for name in after)
    assert {name: each.tokens for name, each in record.languages.items()} == {
        name: count * LENGTH for name, count in read.items()
    }
    assert record.dataset_fingerprints == other.dataset_fingerprints


def test_batch_size_and_other_languages_do_not_matter() -> None:
    counts = []
    for size, languages in ((1, "en fr"), (3, "en fr"), (64, "en fr"), (8, "en fr sw")):
        config = MWandaConfig(**SMALL, calibration_tolerance=TOLERANCE, batch_size=size)
        statistics = MWandaPruner(config, progress=False).calibrate(make_model(), rows(languages))
        counts.append({entry.language: entry.chunks for entry in statistics.coverage if entry.language != "sw"})
    assert all(each == counts[0] for each in counts)


def test_zero_reads_everything() -> None:
    _, pruner, _ = pruned(rows(), calibration_tolerance=0.0)
    assert {entry.chunks for entry in pruner.coverage} == {CHUNKS}


def test_experts_are_judged_by_the_text_that_reaches_them() -> None:
    model = FAMILIES["mixtral"].make()
    config = MWandaConfig(**SMALL, calibration_tolerance=0.5)
    statistics = MWandaPruner(config, progress=False).calibrate(model, rows())
    assert {entry.chunks for entry in statistics.coverage} <= {2, 4, 8, 16}


@pytest.mark.parametrize(
    ("where", "chunks"),
    [
        (0, 2),
        (2, 4),  # after two chunks the second expert has got nothing
        (9, 8),  # after eight chunks of eight tokens two experts have got 32 on average
        (None, 8),
    ],
)
def test_experts_are_waited_for_until_a_language_that_uses_them_would_have_reached_them(
    where: int | None, chunks: int
) -> None:
    """The first expert gets tokens that are even and the second one those that are odd, which are in one chunk."""
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj", "w2.weight")):
                parameter.zero_()  # so that hidden states are embeddings
            if name.endswith(("embed_tokens.weight", "gate.weight")):
                parameter.zero_()[:4, :2] = torch.eye(2).repeat(2, 1)[: len(parameter)]
    config = MWandaConfig(sequence_length=8, samples_per_language=CHUNKS, calibration_tolerance=0.99)

    def rows(starts: Iterable[int]) -> list[dict[str, Any]]:
        return [{"language": "en", "input_ids": [start, start + 2] * 4} for start in starts]

    (batch,) = build_chunks(rows(range(CHUNKS)), config, model).chunks["en"]
    order = batch["input_ids"][:, 0].tolist()  # in which the rows are read
    text = rows(int(where is not None and number == order[where]) for number in range(CHUNKS))
    statistics = MWandaPruner(config, progress=False).calibrate(model, text)
    assert statistics.coverage[0].chunks == chunks
    second = [entry.tokens for name, entry in statistics.weights.items() if "experts.1." in name]
    assert {int(tokens) for tokens in second} == {8 if where is not None and where < chunks else 0}


def test_weights_that_are_in_no_expert_are_all_waited_for() -> None:
    weights = flat(find_weights(find_blocks(make_model())))
    with StatisticsCollector(weights, ["en"], []) as collector:
        assert collector.lacks(TOKENS_PER_EXPERT)
        assert collector.lacks(0)


@pytest.mark.parametrize("method", ["prune", "calibrate"])
def test_what_cannot_tell_is_refused_before_the_text_is_read(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = MWandaPruner(MWandaConfig(**SMALL, calibration_tolerance=0.1), progress=False)
    with pytest.raises(ValueError, match=r"calibration_tolerance=0.1 needs the whole model in the memory of one"):
        getattr(pruner, method)(on_disk(make_model(), tmp_path), None if method == "calibrate" else "no dataset")
    with pytest.raises(ValueError, match=r"calibration_tolerance=0.1 needs chunks of one length"):
        getattr(pruner, method)(FAMILIES["t5"].make(), "no dataset")
    model = make_model()
    before = state_of(model)
    monkeypatch.setattr(checks, "current", lambda: Processes(0, 2))
    with pytest.raises(ValueError, match="in the memory of one process"):
        getattr(pruner, method)(model, "no dataset")
    assert_untouched(model, before)


@pytest.mark.parametrize(
    "settings",
    [
        *({"language_weights": rule} for rule in ("minimax", "proportional", "temperature")),
        {"tune_regularisation": True},
    ],
    ids=str,
)
def test_settings_that_need_all_text_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"calibration_tolerance=0.1 cannot be combined"):
        MWandaConfig(**settings, calibration_tolerance=0.1)
