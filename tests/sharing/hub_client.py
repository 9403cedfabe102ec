"""What `test_hub.py` runs in a process of its own, with an environment that points at a local Hub; prints JSON."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from optimum_mwanda.configuration import MWandaConfig
from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.evaluation.harness.results import HarnessReport, HarnessScore
from optimum_mwanda.evaluation.report import LanguageScore, PerplexityComparison, PerplexityReport
from optimum_mwanda.pruner import MWandaPruner
from optimum_mwanda.record.verification import sparsity_record, verify_sparsity
from optimum_mwanda.sharing.hub import push_to_hub
from optimum_mwanda.sharing.model_card import create_card
from optimum_mwanda.storage.compressed import decompress

from ..conftest import make_model, make_rows

CONFIG = MWandaConfig(sequence_length=16, samples_per_language=2, seed=3)


def pruned_model(base: str = "acme/base") -> PreTrainedModel:
    """A tiny model that says it was loaded from a repository."""
    model = make_model()
    model.name_or_path = base
    return MWandaPruner(CONFIG, progress=False).prune(model, make_rows())


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<unk>": 0, "neno": 1, "moja": 2}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def comparison() -> PerplexityComparison:
    def report(nll: float) -> PerplexityReport:
        return PerplexityReport({name: LanguageScore(name, 100, nll, 400) for name in ("en", "sw")}, "tiny", 16)

    return PerplexityComparison(report(2.0), {"pruned": report(2.5)}, ["en", "fr", "sw"])


def harness() -> HarnessComparison:
    def report(accuracy: float) -> HarnessReport:
        score = HarnessScore("xcopa", "sw", "acc", accuracy, 0.02, 500, True, "cambridgeltl/xcopa", "test")
        return HarnessReport((score,), "tiny", "0.4.13")

    return HarnessComparison(report(0.75), {"pruned": report(0.5)})


def is_equal(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def message_of(action: Callable[[], object], kind: type[Exception]) -> str:
    """The message with which an action fails."""
    try:
        action()
    except kind as error:
        return f"{type(error).__name__}: {error}"
    return "it did not fail"


def with_token() -> dict[str, Any]:
    model, seen = pruned_model(), {}

    MWandaPruner().push_to_hub(
        model,
        "me/first",
        tokenizer=tokenizer(),
        report=comparison(),
        harness=harness(),
        private=True,
        commit_message="Prune it",
    )
    loaded = AutoModelForCausalLM.from_pretrained("me/first")
    seen["first"] = {
        "equal": is_equal(model, loaded),
        "record": sparsity_record(loaded) == sparsity_record(model) == sparsity_record("me/first"),
        "verified": verify_sparsity("me/first").ok,
        "words": AutoTokenizer.from_pretrained("me/first")("neno moja")["input_ids"],
        "settings": MWandaConfig.from_pretrained("me/first") == CONFIG,
    }

    push_to_hub(model, "me/twice", report=comparison(), harness=harness())
    again = pruned_model()
    with torch.no_grad():
        again.lm_head.weight += 1
    push_to_hub(again, "me/twice", max_shard_size="20KB")
    seen["twice"] = is_equal(again, AutoModelForCausalLM.from_pretrained("me/twice"))

    failure = message_of(lambda: push_to_hub(model, "me/flaky", tokenizer=tokenizer()), HfHubHTTPError)
    left = HfApi().list_repo_files("me/flaky")
    push_to_hub(model, "me/flaky", tokenizer=tokenizer())
    loaded = AutoModelForCausalLM.from_pretrained("me/flaky")
    seen["flaky"] = {"failure": failure, "left": left, "equal": is_equal(model, loaded)}

    push_to_hub(model, "me/carded", report=comparison())
    push_to_hub(model, "me/foreign")
    push_to_hub(model, "me/branched", revision="pruned")
    loaded = AutoModelForCausalLM.from_pretrained("me/branched", revision="pruned")
    seen["branched"] = is_equal(model, loaded)
    seen["pull_request"] = push_to_hub(model, "me/proposed", create_pr=True).pr_url

    push_to_hub(pruned_model("acme/missing"), "me/orphan")
    push_to_hub(model, "me/small")
    push_to_hub(model, "me/small", compressed=True)
    by_id = AutoModelForCausalLM.from_pretrained("me/small")
    with tempfile.TemporaryDirectory() as folder:
        decompress(snapshot_download("me/small"), Path(folder, "dense"))
        dense = AutoModelForCausalLM.from_pretrained(Path(folder, "dense"))
    seen["small"] = is_equal(model, by_id) and is_equal(model, dense) and verify_sparsity("me/small").ok
    model.push_to_hub("me/plain")
    seen["plain"] = AutoModelForCausalLM.from_pretrained("me/plain").config.mwanda_config == model.config.mwanda_config
    seen["dense"] = message_of(lambda: push_to_hub(make_model(), "me/dense"), ValueError)
    return seen


def without_token() -> dict[str, Any]:
    model = pruned_model()
    return {
        "license": create_card(model).data.license,
        "push": message_of(lambda: push_to_hub(model, "me/none"), OSError),
    }


if __name__ == "__main__":
    logging.disable()
    print(json.dumps({"with_token": with_token, "without_token": without_token}[sys.argv[1]]()))
