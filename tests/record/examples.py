"""Sparsity records to read, made by hand from `docs/record.md`."""

import copy
from collections.abc import Mapping
from typing import Any

from optimum_mwanda import SparsityRecord


def make_record(blocks: int = 2, history: int = 1) -> dict[str, Any]:
    """A small valid record."""
    common = {
        "schema": 1,
        "library_version": "0.1.0",
        "settings": {"sparsity": 0.5, "languages": None, "exclude": ["*.x"], "language_weights": {"sw": 2.0}},
        "pattern": "unstructured",
        "target_sparsity": 0.5,
        "achieved_sparsity": 0.5,
        "languages": {"en": {"tokens": 32, "weight": 0.5}, "sw": {"tokens": 32, "weight": 0.5}},
        "dataset_fingerprints": ["0" * 64],
        "model": "org/dense",
        "model_fingerprint": "a" * 64,
        "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    return {
        **common,
        "blocks": {"names": [f"layers.{index}" for index in range(blocks)], "sparsity": [0.5] * blocks},
        "matrices": {
            "mlp.up_proj": {"shape": [4, 8], "zeros": [16] * blocks},
            "mlp.gate": {"shape": [[2, 2], *[None] * (blocks - 1)], "zeros": [2, *[None] * (blocks - 1)]},
        },
        "history": [copy.deepcopy(common) for _ in range(history)],
    }


def make_mixture_record() -> dict[str, Any]:
    """A small valid record of a mixture of experts."""
    record = {**make_record(), "schema": 2}
    record["matrices"]["mlp.experts.up_proj"] = {"shape": [4, 2, 8], "zeros": [32, 32]}
    record["experts"] = {
        "policy": "shared",
        "wanted": 32,
        "count": 8,
        "lacking": 1,
        "names": ["layers.0.mlp.experts.3"],
        "fewest": 0,
        "unreached": {"sw": 2},
    }
    return record


def record_of(sparsities: Mapping[str, float], **fields: Any) -> SparsityRecord:
    """A record of blocks with one matrix each, whose sparsities, in steps of a hundredth, are given by name."""
    shares = list(sparsities.values())
    counted = {
        "blocks": {"names": list(sparsities), "sparsity": shares},
        "matrices": {"mlp.up_proj": {"shape": [10, 10], "zeros": [round(100 * share) for share in shares]}},
        "achieved_sparsity": sum(shares) / len(shares),
    }
    return SparsityRecord.parse(make_record(history=0) | counted | fields)
