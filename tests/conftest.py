"""Small real things that tests share."""

import dataclasses
import gc
import importlib.util
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On tiny tensors a second thread costs more than it gives, and on a busy machine it costs very much.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import hypothesis
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.legal import OneOf
from optimum_mwanda.registry import CRITERIA

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLE_MODEL = EXAMPLES / "sample_model"
SAMPLE_DATA = EXAMPLES / "sample_data"
BENCHMARKS = EXAMPLES.parent / "benchmarks"
CHOICES: dict[str, tuple[str, ...]] = {
    field.name: tuple(field.metadata["legal"].names)
    for field in dataclasses.fields(MWandaConfig)
    if type(field.metadata["legal"]) is OneOf
}
"""Settings with a list of legal values."""
UPDATING = tuple(name for name, criterion in CRITERIA.items() if criterion.updates)
WEIGHTINGS = ("equal", "proportional", "temperature")

# Busy machines are slow, which is no failure; continuous integration judges by the same examples each time.
hypothesis.settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("project")


class DeprecationsAreErrors(logging.Handler):
    """Raises where a library only logs that what it was asked for is deprecated."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower():
            raise DeprecationWarning(message)


for library in ("transformers", "datasets", "huggingface_hub"):
    logging.getLogger(library).addHandler(DeprecationsAreErrors())


def load_benchmark(name: str) -> ModuleType:
    """A script of `benchmarks`, as a module; those that import others need the folder in `sys.path`."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_finish() -> None:
    """What is imported by now stays, so the garbage collector need not look through it time and again."""
    gc.collect()
    gc.freeze()


torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> None:
    """What was started in the background, or by nohup, ignores interrupts, and so would what it starts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(
        Qwen3Config(
            **SIZES,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {"llama": _llama, "qwen3": _qwen3, "gpt2": _gpt2}


def make_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A tiny random model in training mode, as a constructor leaves it."""
    torch.manual_seed(seed)
    return FAMILIES[family]()


def make_rows(languages: str = "en fr sw", rows: int = 4, length: int = 40, seed: int = 0) -> list[dict[str, object]]:
    """Tokenised rows whose ids have a different distribution in each language."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "language": language,
            "input_ids": torch.randint(3 + 8 * index, 40 + 16 * index, (length,), generator=generator).tolist(),
        }
        for index, language in enumerate(languages.split())
        for _ in range(rows)
    ]


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every weight, to compare with later."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def has_hooks(model: torch.nn.Module) -> bool:
    """Whether anything listens to the gradients of a parameter."""
    return any(each._backward_hooks or each._post_accumulate_grad_hooks for each in model.parameters())


def assert_untouched(model: PreTrainedModel, before: dict[str, torch.Tensor], training: bool = True) -> None:
    """The model has the weights, the training flags and the hooks that it had."""
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, module in model.named_modules():
        assert module.training is training, name
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name


@pytest.fixture(scope="session")
def sample_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SAMPLE_MODEL)


@pytest.fixture
def sample_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL, dtype=torch.float32)


@pytest.fixture(scope="session")
def sample_rows() -> dict[str, list[dict[str, str]]]:
    """The embedded parallel sentences: `calibration` and `evaluation`."""
    return {
        part: [json.loads(line) for line in (SAMPLE_DATA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        for part in ("calibration", "evaluation")
    }
