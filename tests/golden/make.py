"""Writes the golden statistics and mask digests; run it only when the maths is meant to change, and say why.

python -m tests.golden.make
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from optimum_mwanda import CalibrationStatistics, MWandaConfig, MWandaPruner
from tests.conftest import SAMPLE_DATA, SAMPLE_MODEL

FOLDER = Path(__file__).parent
STATISTICS = FOLDER / "statistics.safetensors"
DIGESTS = FOLDER / "digests.json"
CALIBRATION = {"languages": ("en", "ja", "ta"), "sequence_length": 64, "samples_per_language": 4}
CONFIGS: dict[str, dict[str, object]] = {
    "defaults": {},
    "magnitude": {"criterion": "magnitude", "group": "row", "allocation": "uniform"},
    "wanda": {"criterion": "wanda", "group": "row", "allocation": "uniform"},
    "ria": {"criterion": "ria", "group": "matrix", "allocation": "uniform"},
    "mwanda on wanda with cwl": {"base": "wanda", "group": "row", "variance": "std", "allocation": "cwl"},
    "mwanda on ria with owl": {"base": "ria", "variance": "std", "group": "matrix", "allocation": "owl"},
    "mwanda with every term": {
        "base": "ria",
        "variance": "relative_variance",
        "activation": "positive",
        "group": "matrix",
        "allocation": "owl",
        "sparsity": 0.7,
    },
    "2:4": {"pattern": "2:4"},
}


def config(name: str) -> MWandaConfig:
    return MWandaConfig(**{**CALIBRATION, **CONFIGS[name]})  # type: ignore[arg-type]


def load_sample() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL, dtype=torch.float32)


def calibrate() -> CalibrationStatistics:
    texts: dict[str, list[str]] = {}
    for line in (SAMPLE_DATA / "calibration.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts.setdefault(row["language"], []).append(row["text"])
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_MODEL)
    pruner = MWandaPruner(config("defaults"), progress=False)
    return pruner.calibrate(load_sample(), texts, tokenizer, also_for=map(config, CONFIGS))


def digest(name: str, statistics: CalibrationStatistics) -> str:
    """SHA-256 over the pruned weights of the sample model."""
    model = MWandaPruner(config(name), progress=False).apply(load_sample(), statistics)
    total = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        total.update(key.encode() + (tensor == 0).numpy().tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    dataclasses.replace(calibrate(), model=SAMPLE_MODEL.name).save(STATISTICS)  # no path of one machine
    golden = CalibrationStatistics.load(STATISTICS)
    DIGESTS.write_text(json.dumps({name: digest(name, golden) for name in CONFIGS}, indent=2) + "\n")
