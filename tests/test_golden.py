"""Numbers that no change may move unless it means to: masks of the sample model, pinned."""

import json

import pytest
import torch

from optimum_mwanda import CalibrationStatistics
from tests.golden.make import CONFIGS, DIGESTS, STATISTICS, calibrate, digest


@pytest.fixture(scope="module")
def golden() -> CalibrationStatistics:
    return CalibrationStatistics.load(STATISTICS)


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_are_the_pinned_ones(name: str, golden: CalibrationStatistics) -> None:
    assert digest(name, golden) == json.loads(DIGESTS.read_text())[name]


def test_calibration_gives_the_pinned_statistics(golden: CalibrationStatistics) -> None:
    # Machines differ in the last digits of float32 sums, and in activity counts where a value sits at the threshold.
    found = calibrate()
    assert found.coverage == golden.coverage
    assert found.fingerprints == golden.fingerprints
    for name, expected in golden.weights.items():
        torch.testing.assert_close(found.weights[name].square_sum, expected.square_sum, rtol=1e-4, atol=1e-6)
        for key, counts in expected.active.items():
            assert (found.weights[name].active[key] - counts).abs().max() <= 2
