"""Runs a comparison: one calibration and one dense evaluation serve as many prunings as possible."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers

from ...calibration.statistics import CalibrationStatistics
from ...configuration import MWandaConfig
from ...data.chunks import build_chunks
from ...evaluation.perplexity import measure_languages
from ...evaluation.reading import read_held_out
from ...evaluation.report import PerplexityReport
from ...evaluation.settings import EvaluationSettings
from ...modeling.blocks import find_blocks
from ...modeling.fingerprint import model_fingerprint
from ...modeling.interrupts import check_interrupts, deferred_interrupts
from ...modeling.weights import find_weights, flat
from ...processes.group import current, sharing
from ...pruner import MWandaPruner
from ...pruning.sparsity_plan import SparsityPlan
from ...record.schema import RECORD_KEY, SparsityRecord
from ...utils import abridged, progress_bar
from ...version import __version__
from ...walking.failure import bare_failures
from ..dense_state import DenseState
from .conditions import Condition, weigh_seen
from .plan import ComparisonPlan
from .runs import DenseResult, Results, RunResult, append, digest, read_results

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Run(NamedTuple):
    """A pruning to be done."""

    key: str
    name: str
    config: MWandaConfig
    plan: SparsityPlan | None
    condition: Condition
    statistics: Callable[[], CalibrationStatistics]


@sharing()
def run_comparison(
    model: "PreTrainedModel",
    dataset: Any,
    evaluation_dataset: Any,
    path: Path,
    plan: ComparisonPlan,
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    batch_size: int = EvaluationSettings.batch_size,
    progress: bool = True,
) -> Results:
    """Prunes and evaluates everything that the plan asks for and the file of results does not hold yet.

    Methods that only need the dense model share one calibration per seed, whatever languages they use of it; the
    others calibrate anew. The dense model is evaluated once per file. Of several processes that share the work, the
    first one reads and writes the file.

    Args:
        model: The dense model; afterwards, and after a failure, it is as it was before.
        dataset: Calibration text, as for `MWandaPruner.prune`; it is read several times.
        evaluation_dataset: Held-out text, as for `evaluate_languages`; it is read several times.
        path: File of JSON lines. A finished run is added at once, so that an interrupt loses nothing.
        plan: What to run.
        tokenizer: Tokenizer for texts, or its name or path. None: the one saved beside the model.
        batch_size: Windows per forward pass of the evaluation.
        progress: Whether to show a progress bar.

    Returns:
        Everything that the file then holds.

    Raises:
        FloatingPointError: If weights, activations or losses are NaN or infinite.
        OSError: If the file cannot be read or written.
        TypeError: If the model or the data have a type that cannot be read.
        ValueError: If settings, data and model do not fit together, or the file holds results on another model or text.
    """
    fingerprint = model_fingerprint(model)
    columns = plan.calibration(plan.seeds[0])
    evaluation: dict[str, Any] = {
        "sequence_length": plan.sequence_length,
        "tokens_per_language": plan.tokens_per_language,
        "seed": 0,
    }
    settings = EvaluationSettings.like(columns, batch_size=batch_size, **evaluation)
    text = read_held_out(model, tokenizer, evaluation_dataset, settings).digests
    dense_key = digest(
        {"model": fingerprint, "text": text, "samples_per_language": plan.samples_per_language, **evaluation}
    )
    languages = tuple(sorted(plan.languages or build_chunks(dataset, columns, model, tokenizer).chunks))
    about = {**evaluation, "samples_per_language": plan.samples_per_language, "model_fingerprint": fingerprint}
    processes = current()
    results = processes.from_first(lambda: _read_matching(path, dense_key, languages, about, text))
    conditions, known = plan.conditions(languages), {} if results is None else results.runs
    missing = list(_missing(model, dataset, tokenizer, plan, conditions, dense_key, known))
    measure = partial(measure_languages, model, tokenizer, evaluation_dataset, settings, progress=False)
    weights = flat(find_weights(find_blocks(model, columns.blocks)))
    if results is None:
        results = Results(DenseResult(dense_key, languages, measure(), {**about, **_versions()}), {})
        if processes.is_first:
            append(path, results.dense)
    show = progress and processes.is_first
    with deferred_interrupts(), DenseState(model, weights) as state:
        for run in progress_bar(missing, total=len(missing), description="Comparing", show=show):
            start = time.perf_counter()
            _prune(model, dataset, tokenizer, run)
            seconds = time.perf_counter() - start
            record = SparsityRecord.parse(getattr(model.config, RECORD_KEY))
            result = _describe(run, measure(), record.achieved_sparsity, seconds)
            state.restore()
            if processes.is_first:
                append(path, result)
            results.runs[run.key] = result
            check_interrupts()
    return results


def _difference(dense: DenseResult, about: Mapping[str, Any], text: Mapping[str, str]) -> str:
    """In what the results of a file differ from those that are asked for, to follow "results"."""
    named = {
        "model_fingerprint": "on another model, or on other weights of it",
        "sequence_length": "in windows of {there} tokens and not {here}",
        "tokens_per_language": "on {there} held-out tokens per language and not {here}",
        "samples_per_language": "of {there} calibration chunks per language and not {here}",
    }
    found = [
        words.format(there=dense.about[name], here=about[name])
        for name, words in named.items()
        if dense.about.get(name, about[name]) != about[name]
    ]
    scores = dense.report.scores
    if scores.keys() != text.keys():
        there, here = sorted(scores.keys() - text.keys()), sorted(text.keys() - scores.keys())
        found.append(f"on other held-out languages ({abridged([*there, *here])} only on one side)")
    elif not found and (other := [name for name, score in scores.items() if score.digest != text[name]]):
        found.append(f"on other held-out text, or of another tokenizer, in {abridged(other)}")
    return ", ".join(found) or "on another model, or of another number of calibration chunks"


def _read_matching(
    path: Path, dense_key: str, languages: tuple[str, ...], about: Mapping[str, Any], text: Mapping[str, str]
) -> Results | None:
    """The results in a file, which must be on the same model and text; None if there are none."""
    results = read_results(path)
    if results is None:
        return None
    if any(score.digest is None for score in results.dense.report.scores.values()):
        raise ValueError(
            f"{path} was written by an earlier version, so nothing can be added to its results: show them with "
            "--tables-only, and name another file for new ones."
        )
    if results.dense.key != dense_key:
        raise ValueError(f"{path} holds results {_difference(results.dense, about, text)}: name another file.")
    if results.dense.languages != languages:
        raise ValueError(
            f"{path} compares calibrations among {', '.join(results.dense.languages)}: choose these languages, or name "
            "another file."
        )
    return results


def _missing(
    model: "PreTrainedModel",
    dataset: Any,
    tokenizer: Any,
    plan: ComparisonPlan,
    conditions: list[Condition],
    dense_key: str,
    known: dict[str, RunResult],
) -> Iterator[_Run]:
    """The missing runs; those that share a calibration come one after the other."""
    languages = {language for each in conditions for language in each.languages}
    for seed in plan.seeds:
        for samples in dict.fromkeys(each.samples_per_language for each in conditions):
            sharing = [each for each in conditions if each.samples_per_language == samples]
            union = tuple(sorted({language for each in sharing for language in each.languages}))
            config = plan.calibration(seed, Condition("", union, samples))
            texts = build_chunks(dataset, config, model, tokenizer).fingerprints
            planned = [(each, name, run) for each in sharing for name, run in plan.runs(seed, each)]
            runs = [(each, name, weigh_seen(run, each, languages)) for each, name, run in planned]
            also_for = [run for *_, run in runs]
            # Each seed has its own calibration, which is made when the first run asks for it.
            statistics = cache(partial(_calibrate, model, dataset, tokenizer, config, also_for))
            for condition, name, run in runs:
                read = {language: texts[language] for language in condition.languages}
                chosen = plan.plan_of(name, run)
                about = {"config": run.to_dict(), "calibration": read, "dense": dense_key}
                key = digest(about if chosen is None else {**about, "plan": chosen.to_dict()})
                if key in known:
                    known[key] = known.pop(key)  # if a name has several settings, the last ones count
                else:
                    yield _Run(key, name, run, chosen, condition, statistics)


def _calibrate(
    model: "PreTrainedModel", dataset: Any, tokenizer: Any, config: MWandaConfig, also_for: list[MWandaConfig]
) -> CalibrationStatistics:
    return MWandaPruner(config, progress=False).calibrate(model, dataset, tokenizer, also_for=also_for)


def _prune(model: "PreTrainedModel", dataset: Any, tokenizer: Any, run: _Run) -> None:
    pruner = MWandaPruner(run.config, progress=False, restore_on_failure=False)  # the caller keeps the dense weights
    with bare_failures():
        if run.config.needs_text:
            pruner.prune(model, dataset, tokenizer, run.plan)
        else:
            pruner.apply(model, run.statistics(), run.plan)


def _describe(run: _Run, report: PerplexityReport, achieved_sparsity: float, seconds: float) -> RunResult:
    return RunResult(
        run.key,
        run.name,
        run.condition.name,
        run.condition.fold,
        run.config.to_dict(),
        run.condition.languages,
        report,
        {"achieved_sparsity": achieved_sparsity, "pruning_seconds": round(seconds, 3), **_versions()},
    )


def _versions() -> dict[str, Any]:
    versions = {"optimum_mwanda": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"versions": {name: str(version) for name, version in versions.items()}}
