"""Every model family, on tiny random models with the family's own features."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optimum_mwanda import MWandaConfig, MWandaPruner, verify_sparsity
from optimum_mwanda.modeling.block_source import BlockSource
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode
from optimum_mwanda.modeling.weights import find_weights, flat
from optimum_mwanda.walking.replay import BlockCalls
from tests.conftest import EXAMPLES, state_of
from tests.families.family import LENGTH, Blocks, Family, expand
from tests.families.matrix import FAMILIES, REASONS, Reason
from tests.families.table import page

SETTINGS = {"sparsity": 0.5, "group": "matrix", "sequence_length": LENGTH, "batch_size": 2}

CURRENT = [family for family in FAMILIES.values() if family.is_current]

every_family = pytest.mark.parametrize("family", CURRENT, ids=lambda family: family.name)


def locate(model: nn.Module, name: str) -> tuple[str, Tensor]:
    """The parameter that holds a matrix, by the name that the matrix has in the expectations, and the matrix in it."""
    parameters = dict(model.named_parameters())
    if f"{name}.weight" in parameters:
        return f"{name}.weight", parameters[f"{name}.weight"]
    module, expert, parameter = name.rsplit(".", 2)
    stored = parameters[f"{module}.{parameter}"]
    experts = stored if stored.dim() == 3 else stored.unflatten(0, (4, -1))  # stacked: every family here has 4 experts
    return f"{module}.{parameter}", experts[int(expert)]


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def prune(family: Family, **settings: object) -> PreTrainedModel:
    config = MWandaConfig(**SETTINGS, **settings)
    return MWandaPruner(config, progress=False).prune(family.make(), family.rows())


@functools.cache
def pruned_model(name: str) -> PreTrainedModel:
    """A model pruned with the defaults, for tests that only look at it."""
    return prune(FAMILIES[name])


def assert_target_met(family: Family, model: PreTrainedModel) -> None:
    """Half of all prunable weights are zero, up to half a weight per matrix, and nothing else has changed."""
    dense = family.make()
    before = state_of(dense)
    total = pruned = 0
    stored = set()
    for name in family.pruned:
        path, matrix = locate(model, name)
        stored.add(path)
        total += matrix.numel()
        pruned += zeros(matrix) - zeros(locate(dense, name)[1])
    assert abs(pruned - total / 2) <= len(family.pruned) / 2
    changed = {path for path, tensor in model.state_dict().items() if not torch.equal(tensor, before[path])}
    assert changed <= stored, f"changed, and not to be pruned: {sorted(changed - stored)}"


@torch.no_grad()
def logits(family: Family, model: PreTrainedModel) -> Tensor:
    return torch.cat([model(**batch).logits for batch in family.batches()])


@every_family
def test_blocks_computed_one_by_one_give_what_the_model_gives(family: Family) -> None:
    model = family.make()
    blocks = find_blocks(model)
    own: dict[str, list[Tensor]] = {name: [] for name in blocks}

    def keep(name: str, _: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        own[name].append((output if torch.is_tensor(output) else output[0]).clone())

    handles = [block.register_forward_hook(functools.partial(keep, name)) for name, block in blocks.items()]
    with torch.no_grad():
        for batch in family.batches():
            model(**batch)
    for handle in handles:
        handle.remove()
    with inference_mode(model):
        for stack in stacks(blocks):
            calls = BlockCalls(model, stack, family.batches(), BlockSource(stack))
            for name, block in stack.items():
                list(calls.advancing(name, block))
                for batch, expected in enumerate(own[name]):
                    assert torch.equal(calls.hidden[batch], expected), f"{name}, batch {batch}"


def stacks(blocks: dict[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """The blocks of each list: an encoder's apart from its decoder's."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in blocks):
        yield {name: block for name, block in blocks.items() if name.rpartition(".")[0] == path}


@every_family
def test_pruned_matrices_are_those_written_down(family: Family) -> None:
    blocks = find_blocks(family.make())
    assert set(blocks) == {path for kind in family.blocks for path in expand(kind.paths)}
    found = flat(find_weights(blocks))
    names = {weight.name for weight in found}
    missing, new = sorted(family.pruned - names), sorted(names - family.pruned)
    assert (missing, new) == ([], []), f"{family.name}: expected but not found {missing}, found but not expected {new}"
    assert len(names) == len(found)


@every_family
def test_dense_calibration_meets_the_target(family: Family) -> None:
    assert_target_met(family, pruned_model(family.name))


@every_family
def test_sequential_calibration_meets_the_target(family: Family) -> None:
    assert_target_met(family, prune(family, calibration="sequential", allocation="owl"))


@every_family
def test_pruned_model_saves_and_loads(family: Family, tmp_path: Path) -> None:
    model = pruned_model(family.name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(family, loaded), logits(family, model))
    for source in (model, loaded, tmp_path):
        verification = verify_sparsity(source)
        assert verification.ok, str(verification)


@pytest.mark.parametrize("family", [f for f in CURRENT if f.kind != "encoder"], ids=lambda f: f.name)
def test_pruned_model_generates(family: Family) -> None:
    prompt = family.batches()[0]["input_ids"]
    model = pruned_model(family.name)
    generated = model.generate(input_ids=prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    start = 1 if family.kind == "encoder-decoder" else LENGTH
    assert generated.shape == (len(prompt), start + 4)


@pytest.mark.parametrize(("name", "reason"), REASONS.items(), ids=REASONS)
def test_reasons_for_not_supporting_a_family_hold(name: str, reason: Reason) -> None:
    if reason.family is None:
        assert name not in CONFIG_MAPPING
        return
    with pytest.raises(ValueError, match=reason.message):
        find_weights(find_blocks(reason.family.make()))


@pytest.mark.skipif(len(CURRENT) < len(FAMILIES), reason="the page is of the newest transformers")
def test_written_page_of_families_is_current() -> None:
    written = (EXAMPLES.parent / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m tests.families.table > docs/models.md"


def test_paths_are_written_with_braces() -> None:
    assert list(expand("a.{b,c}.{0-2}")) == ["a.b.0", "a.b.1", "a.b.2", "a.c.0", "a.c.1", "a.c.2"]
    assert list(expand("wi{,_0}")) == ["wi", "wi_0"]
    assert Blocks("x", "q.{a,b} o").expanded == ["q.a", "q.b", "o"]
