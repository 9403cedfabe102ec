"""How well a model predicts held-out text, per language."""

import math
import textwrap
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..data.special_tokens import warn_of_unknown
from ..data.tokenised import IGNORED_LABEL
from ..modeling.blocks import inference_mode, run_model
from ..modeling.fingerprint import model_fingerprint
from ..modeling.likelihood import check_measurable, headless
from ..modeling.sharding import divides_text, reshard, shares_parameters
from ..processes.dealing import even_part
from ..processes.group import Processes, current, sharing
from ..utils import portable_name, progress_bar, sum_dtype
from ..values import describe_fields
from .head import HeadInParts, RunAgain
from .held_out import Batch
from .reading import read_held_out
from .report import PerplexityReport
from .settings import EvaluationSettings
from .windows import Window, score_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = 256  # of which the logits are in float32 together


def run_each(model: "PreTrainedModel", batches: Sequence[Mapping[str, Tensor]]) -> Generator[Any, None, None]:
    """Runs a model batch by batch, and yields what it gives."""
    for inputs in batches:
        yield run_model(model, inputs)


Run: TypeAlias = Callable[["PreTrainedModel", Sequence[Mapping[str, Tensor]]], Generator[Any, None, None]]


def evaluate_languages(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None",
    dataset: Any,
    *,
    reference: PerplexityReport | None = None,
    progress: bool = True,
    **settings: Any,
) -> PerplexityReport:
    """Measures negative log-likelihood, perplexity and bits per byte of held-out text in every language.

    The texts of a language are concatenated and read in windows that overlap by one token, so that every token but
    the first is predicted exactly once. Each window begins with what the tokenizer writes before a text, unless `bos`
    says otherwise. Special tokens are context, never targets, if there is a tokenizer to recognise them; the token for
    unknown text is a target, as it stands for text. Nothing is padded. The scores keep every window and resample them
    for their standard errors; for this, a window with less than half of a full window's targets, such as the last, is
    joined to its neighbour.

    The processes of an initialised group measure a part of the windows each, and get the same report.

    For an encoder-decoder, the likelihood of the target given the source is measured. Every row is a window; one with
    less than half of the average number of targets is joined to its neighbour. Bytes are those of targets.

    Args:
        model: A causal language model or an encoder-decoder; it is not changed.
        tokenizer: Its tokenizer, or the name or path of one. None: the one saved beside the model; rows with
            `input_ids` need none, and then bits per byte are unknown.
        dataset: `datasets.Dataset` or `IterableDataset`, a dict of language to texts, or a list of rows.
        reference: Report to compare with later; if it is on other text, an error says so before anything is measured.
        progress: Whether to show a progress bar.
        **settings: What to read, and how much at a time:
            {settings}

    Returns:
        The scores, languages in sorted order.

    Raises:
        TypeError: If the dataset or its columns have a type that cannot be read, or a setting does not exist.
        FloatingPointError: If the model gives NaN or infinite losses; the message names the language.
        ValueError: If the model cannot give text a likelihood, columns or languages are missing, a language has no
            token to predict, ids do not fit, or the text differs from that of `reference`.
    """
    return measure_languages(model, tokenizer, dataset, EvaluationSettings(**settings), reference, progress)


evaluate_languages.__doc__ = str(evaluate_languages.__doc__).format(
    settings=textwrap.indent(describe_fields(EvaluationSettings), "    ").lstrip()
)


@sharing()
def measure_languages(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None",
    dataset: Any,
    settings: EvaluationSettings,
    reference: PerplexityReport | None = None,
    progress: bool = True,
    run: Run = run_each,
) -> PerplexityReport:
    """Does the work of `evaluate_languages`; the model is run by `run`."""
    check_measurable(model)
    reading = read_held_out(model, tokenizer, dataset, settings)
    if reference is not None:
        reference.check_text(reading.digests)
    jobs = [(language, batch) for language, parts in reading.batches.items() for batch in parts]
    measured: dict[str, dict[int, Window]] = {language: {} for language in reading.batches}
    losses = _losses(model, jobs, reading.digests, progress, run)
    for language, batch in jobs:
        for number, wanted in zip(batch.numbers, batch.targets, strict=True):
            measured[language][number] = Window(next(losses), wanted[wanted != IGNORED_LABEL].tolist())
    scores = {}
    for language, digest in reading.digests.items():
        windows = [measured[language][number] for number in sorted(measured[language])]
        sizes, min_targets = reading.held_out.sizes(language, windows), reading.held_out.min_targets(windows)
        unknown = reading.held_out.encoder.unknown(window.targets for window in windows)
        scores[language] = score_windows(language, windows, sizes, min_targets, digest, unknown)
    warn_of_unknown(((language, score.unknown_share) for language, score in scores.items()), "measured")
    name = portable_name(getattr(model, "name_or_path", "") or "")
    return PerplexityReport(
        scores, name, reading.sequence_length, settings.tokens_per_language, settings.seed, settings.bos
    )


def _losses(
    model: "PreTrainedModel", jobs: Sequence[tuple[str, Batch]], digests: Mapping[str, str], progress: bool, run: Run
) -> Iterator[float]:
    """The losses of all windows, in order; processes that share the work measure a part of the batches each.

    Raises:
        FloatingPointError: If a loss is NaN or infinite.
        ValueError: If the processes do not have the same model and text.
    """
    processes = current() if divides_text(model) else Processes()
    if processes.size > 1:
        facts = {"the model or its weights": model_fingerprint(model), "the held-out text": dict(digests)}
        processes.check_alike(facts, "Give all of them the same model, settings and rows.")
    own = even_part(len(jobs), processes.rank, processes.size)
    starts = [0, *accumulate(len(batch.numbers) for _, batch in jobs)]
    losses = torch.zeros(starts[-1], dtype=torch.float64)
    show = progress and processes.is_first
    # Blocks from disk come into memory once, for all batches: nothing can be run again there. And an encoder-decoder is
    # given labels, for which it needs all logits.
    has_labels = any("labels" in batch.inputs for _, batch in jobs)
    is_alone = run is run_each and not shares_parameters(model)  # what processes share, all must run equally often
    head = HeadInParts(model, is_allowed=is_alone and not has_labels)
    with inference_mode(model), head, closing(run(model, [jobs[job][1].inputs for job in own])) as outputs:
        for job in progress_bar(own, total=len(own), description="Evaluating", show=show and run is run_each):
            language, batch = jobs[job]
            output = next(outputs)
            try:
                found = _negative_log_likelihoods(model, output, batch, head.logits(output))
            except RunAgain:
                found = _negative_log_likelihoods(model, run_model(model, batch.inputs), batch)
            for loss in found:
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"The loss of language {language!r} is {loss}: the model gives NaN or infinity."
                    )
            losses[starts[job] : starts[job + 1]] = torch.tensor(found, dtype=torch.float64)
        if shares_parameters(model):
            for _ in range(len(even_part(len(jobs), 0, processes.size)) - len(own)):
                run_model(model, jobs[0][1].inputs)  # the others need this process's parts
            reshard(model)
    (losses,) = processes.add_up([losses])
    return iter(losses.tolist())


def _negative_log_likelihoods(
    model: "PreTrainedModel", output: Any, batch: Batch, parts: Callable[[int, int], Iterable[Tensor]] | None = None
) -> list[float]:
    """Sum over the targets of each window of a batch, in nats.

    Args:
        model: It.
        output: What it gave.
        batch: For what.
        parts: From the number of a window and a number of tokens to their logits, some at a time; None: all are in the
            output.

    Raises:
        ValueError: If what the model gave are not logits per token.
    """
    logits = getattr(output, "logits", None)
    if logits is None or logits.ndim != 3:
        raise headless(model)
    targets = batch.targets.to(logits.device)
    sums = [torch.zeros((), dtype=sum_dtype(logits.device), device=logits.device) for _ in targets]
    for row, wanted in enumerate(targets):
        # In float32 the logits of a batch can be larger than the model.
        found = torch.split(logits[row, : len(wanted)], _TOKENS) if parts is None else parts(row, len(wanted))
        start = 0
        for part in found:
            aims = wanted[start : start + len(part)]
            loss = torch.nn.functional.cross_entropy(part.float(), aims, reduction="none", ignore_index=IGNORED_LABEL)
            sums[row] += loss.sum(dtype=sum_dtype(logits.device))
            start += len(part)
    losses: list[float] = torch.stack(sums).tolist()
    return losses
