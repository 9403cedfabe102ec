"""Writing a pruned model with everything that belongs to it, and reading its evaluation back."""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sharing.names import CARD_NAME, EVALUATION_NAME, HARNESS_NAME, REPO_ID
from .errors import DataError, ModelError, UsageError, errors_as, one_line
from .output import check_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..evaluation.harness.comparison import HarnessComparison
    from ..evaluation.report import PerplexityComparison
    from ..record.schema import SparsityRecord

# Bounded, because a README may come from anywhere, and without bounds a long word takes very long.
_LOADED_FROM = re.compile(r'AutoModel\w{0,64}\.from_pretrained\("([^"]{0,256})"\)')


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the files to write."""
    parser.add_argument(
        "--compressed",
        action="store_true",
        help="Store only the non-zeros; loading then needs optimum-mwanda (default: an ordinary checkpoint)",
    )
    parser.add_argument(
        "--base-model",
        metavar="ID",
        help="Repository of the dense model, for the card (default: MODEL, if it is a repository)",
    )


def check_model_room(
    model: "PreTrainedModel", folder: Path, args: argparse.Namespace, *sparsities: float, kept: int = 0
) -> None:
    """Checks before a model is pruned that there is room for what `write_checkpoint` will write.

    Args:
        model: The dense model.
        folder: As for `write_checkpoint`.
        args: All arguments.
        *sparsities: One for every result.
        kept: Bytes that will be written besides.

    Raises:
        ModelError: If there is not.
    """
    dense = sum(parameter.nbytes for parameter in model.parameters())
    # A compressed checkpoint is made of a dense one, which goes when it is complete.
    stored = [dense * (1 - sparsity) if args.compressed else dense for sparsity in sparsities]
    check_room(folder, int(sum(stored)) + dense * args.compressed + kept)


def write_checkpoint(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    folder: Path,
    args: argparse.Namespace,
    report: "PerplexityComparison | None" = None,
) -> "SparsityRecord":
    """Writes weights, tokenizer, settings, evaluation and card into an empty folder.

    Returns:
        The record of the model.

    Raises:
        ModelError: If the model cannot be saved.
    """
    from safetensors import SafetensorError

    from ..record.schema import SparsityRecord
    from ..sharing.folder import save_folder
    from ..sharing.model_card import describe

    with errors_as(ModelError, ValueError, TypeError, OSError, SafetensorError):
        record = SparsityRecord.parse(model.config.mwanda_config)
        card = dataclasses.replace(describe(model, report, args.base_model), compressed=args.compressed)
        save_folder(model, folder, tokenizer, report=report, card=card, compressed=args.compressed)
    return record


def read_report(path: Path) -> "PerplexityComparison":
    """Reads what `prune --eval-dataset` or `evaluate --dense` wrote.

    Raises:
        DataError: If it is not a comparison of a dense and a pruned model.
    """
    from ..evaluation.report import PerplexityComparison

    with errors_as(DataError, OSError):
        text = path.read_text(encoding="utf-8")
    try:
        return PerplexityComparison.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not hold a comparison of a dense and a pruned model ({error!r}): write one with `optimum-cli "
            "mwanda evaluate MODEL --dataset ... --dense DENSE_MODEL --output FILE`."
        ) from error


def own_report(folder: Path) -> "PerplexityComparison | None":
    """The evaluation in the folder of a model; None if there is none.

    Raises:
        DataError: As `read_report`.
    """
    path = folder / EVALUATION_NAME
    return read_report(path) if path.is_file() else None


def read_harness(dense: str, pruned: str) -> "HarnessComparison":
    """Reads results of lm-evaluation-harness: files, or folders given to `lm-eval run --output_path`.

    Raises:
        DataError: If they cannot be read or do not cover the same tasks.
    """
    from ..evaluation.harness.comparison import HarnessComparison
    from ..evaluation.harness.results import HarnessReport

    with errors_as(DataError, OSError, ValueError):
        return HarnessComparison(HarnessReport.from_files(dense), {"pruned": HarnessReport.from_files(pruned)})


def check_harness(harness: "HarnessComparison", folder: Path, repo_id: str | None, warn: Callable[[str], None]) -> None:
    """Checks that results of lm-evaluation-harness belong to the model in a folder and to its dense original.

    The harness names a model by a path, which may no longer exist, or by a repository. If the name is an existing
    folder, it must be this one; otherwise its last part must be the name of the folder or the repository. If this
    fits both models, the names cannot tell them apart, and nothing is reported.

    Args:
        harness: The results, of one pruned model.
        folder: The folder of that model.
        repo_id: The repository that it goes to.
        warn: Called if the results of the pruned model seem to belong to another model.

    Raises:
        UsageError: If the results of the dense model seem to belong to the model in the folder, and the others do not.
    """
    (pruned,) = harness.pruned.values()
    here = folder.resolve()
    names = {here.name, Path(repo_id or "").name}

    def is_ours(model: str) -> bool:
        return Path(model).resolve() == here if Path(model).is_dir() else Path(model).name in names

    if is_ours(pruned.model):
        return
    if is_ours(harness.dense.model):
        raise UsageError(
            f"--harness: the first results are of {harness.dense.model!r}, which is the pruned model: give the results "
            "of the dense model first and those of this one second."
        )
    warn(
        f"--harness: the second results are of {pruned.model!r} and are shown as those of {folder}: if that is "
        "another model, run this again with the right results."
    )


def own_harness(folder: Path) -> "HarnessComparison | None":
    """The results of lm-evaluation-harness in the folder of a model; None if there are none.

    Raises:
        DataError: If the file is damaged.
    """
    from ..evaluation.harness.comparison import HarnessComparison

    path = folder / HARNESS_NAME
    if not path.is_file():
        return None
    try:
        return HarnessComparison.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}): write it again with `card --harness`.") from error


def repositories_on_card(card: Path) -> dict[str, str]:
    """`repo_id` and `base_model` as named on our earlier card: no other file in the folder has them."""
    from huggingface_hub import metadata_load

    from ..sharing.card_update import BEGIN, END

    text = card.read_text(encoding="utf-8-sig") if card.is_file() else ""
    if BEGIN not in text:  # perhaps the card of the dense model, whose base is not ours
        return {}
    loaded_from = _LOADED_FROM.search(text.partition(BEGIN)[2].partition(END)[0])
    found = {
        "repo_id": loaded_from and loaded_from[1],
        "base_model": (metadata_load(card) or {}).get("base_model"),
    }
    return {key: name for key, name in found.items() if isinstance(name, str) and REPO_ID.fullmatch(name)}


def refresh_card(folder: Path, warn: Callable[[str], None]) -> None:
    """Updates the card of a checkpoint after its storage changed; a folder without a card or record gets no card.

    Args:
        folder: The checkpoint, complete except for its card.
        warn: Told why the card stays as it was; this is not a reason to throw the weights away.
    """
    from ..record.verification import sparsity_record
    from ..sharing.model_card import save_card
    from ..storage.files import is_compressed

    card = folder / CARD_NAME
    try:
        if card.is_file() and sparsity_record(folder) is not None:
            repositories: dict[str, Any] = repositories_on_card(card)
            evaluations: dict[str, Any] = {"report": own_report(folder), "harness": own_harness(folder)}
            save_card(folder, folder, compressed=is_compressed(folder), **evaluations, **repositories)
    except Exception as error:
        # The folder still has its temporary name, which would tell the user nothing.
        reason = one_line(error).replace(f"{folder}/", "")
        warn(f"{CARD_NAME} stays as it was, so it may not say correctly how to load the model: {reason}")


def summary(record: "SparsityRecord") -> str:
    """One line about what was pruned."""
    return f"{record.achieved_sparsity:.2%} of the weights in {len(record.blocks)} blocks are zero ({record.method})."


def facts(record: "SparsityRecord") -> dict[str, Any]:
    """The parts of the record that the JSON output repeats."""
    values = record.to_dict()
    return {key: values[key] for key in ("model", "target_sparsity", "achieved_sparsity", "languages", "blocks")}
