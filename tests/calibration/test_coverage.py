import torch

from optimum_mwanda.calibration.coverage import ExpertCoverage


def test_languages_that_miss_experts_are_named_in_their_order_and_only_the_first_of_many() -> None:
    languages = [f"l{index:03d}" for index in range(300)]
    tokens = {f"experts.{expert}": torch.tensor([5] * 100 + [0, 3] * 100) for expert in range(4)}
    tokens["experts.2"] = torch.full((300,), 7)
    coverage = ExpertCoverage(tokens, languages)
    missing = ("experts.0", "experts.1", "experts.3")
    assert coverage.unreached == dict.fromkeys(languages[100::2], missing)
    lines = str(coverage).splitlines()
    assert lines[1] == "'l100' does not reach 3 of 4 experts: experts.0, experts.1, experts.3."
    assert lines[-1] == "80 more languages do not reach every expert: see unreached."
    assert len(lines) == 22
    assert ExpertCoverage({}, languages).unreached == {}
