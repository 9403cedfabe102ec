"""The flags that name a dataset: calibration text, and text to evaluate on."""

import argparse
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.settings import EvaluationSettings
from .errors import UsageError
from .places import open_dataset

if TYPE_CHECKING:
    from ..configuration import MWandaConfig


def add_dataset_options(parser: argparse.ArgumentParser, required: bool, purpose: str) -> None:
    """Adds the flags that `open_dataset` reads."""
    group = parser.add_argument_group("dataset")
    group.add_argument(
        "--dataset",
        nargs="+",
        metavar="DATASET",
        required=required,
        help=f"{purpose}: a Hub repository, a folder, or JSON, JSONL, CSV, TSV, Parquet or text files, also "
        "compressed (.gz .xz .zst .bz2); files in other languages may follow a repository or folder; a text file, and "
        "a table without a language column, holds one language and is named after it: sw.txt "
        + ("(required)" if required else "(default: none)"),
    )
    group.add_argument(
        "--dataset-config",
        nargs="+",
        metavar="NAME",
        help="Configuration of a repository or folder. Where each language has its own, several, named after the "
        "languages (sw en) or with them (sw=20231101.sw) (default: its default)",
    )
    group.add_argument(
        "--columns",
        nargs="+",
        type=_pair,
        metavar="NAME=COLUMN",
        help="A table without a language column: the column with the text of each language, as en=sentence_eng, or "
        "en=translation.en for a field of a column (default: none)",
    )
    group.add_argument(
        "--split", metavar="NAME", default="train", help="Split of a repository or folder (default: train)"
    )
    group.add_argument(
        "--streaming",
        action="store_true",
        help="Read a repository or folder in its own order and no further than needed; give --languages too "
        "(default: download all of it and choose rows at random)",
    )


def add_held_out_options(
    parser: argparse.ArgumentParser, required: bool, tokens: int = EvaluationSettings.tokens_per_language
) -> Any:
    """Adds the flags for a second dataset, used for evaluation, and returns their group."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--eval-dataset",
        nargs="+",
        metavar="DATASET",
        required=required,
        help=f"Held-out text, as --dataset ({'required' if required else 'default: none'})",
    )
    group.add_argument(
        "--eval-dataset-config", nargs="+", metavar="NAME", help="As --dataset-config (default: its default)"
    )
    group.add_argument(
        "--eval-columns", nargs="+", type=_pair, metavar="NAME=COLUMN", help="As --columns (default: none)"
    )
    group.add_argument("--eval-split", metavar="NAME", default="test", help="As --split (default: test)")
    group.add_argument(
        "--tokens-per-language",
        type=int,
        metavar="N",
        default=tokens,
        help=f"Most tokens to evaluate per language (default: {tokens})",
    )
    return group


def check_calibration_text(places: Sequence[str] | None, config: "MWandaConfig") -> None:
    """Checks at once that text is given if the settings need it.

    Raises:
        UsageError: If it is missing.
    """
    if places is None and config.needs_statistics:
        raise UsageError(
            f"--criterion {config.criterion} with --allocation {config.allocation} needs calibration text: give "
            "--dataset, or --criterion magnitude --allocation uniform."
        )


def open_text(
    args: argparse.Namespace, settings: "MWandaConfig | EvaluationSettings"
) -> contextlib.AbstractContextManager[Any]:
    """Opens what the flags of `add_dataset_options` name; its language column is as in the settings."""
    return open_dataset(
        args.dataset,
        args.dataset_config,
        args.split,
        args.streaming,
        columns=_by_language("--columns", args.columns),
        language_column=settings.language_column,
    )


def open_held_out(
    args: argparse.Namespace, settings: "MWandaConfig | EvaluationSettings"
) -> contextlib.AbstractContextManager[Any]:
    """Opens what the flags of `add_held_out_options` name; its language column is as in the settings."""
    return open_dataset(
        args.eval_dataset,
        args.eval_dataset_config,
        args.eval_split,
        columns=_by_language("--eval-columns", args.eval_columns),
        language_column=settings.language_column,
    )


def _pair(text: str) -> tuple[str, str]:
    language, sign, column = text.partition("=")
    if not (language and sign and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not a language with its column, such as sw=sentence_swh")
    return language, column


def _by_language(flag: str, pairs: Sequence[tuple[str, str]] | None) -> dict[str, str]:
    columns = dict(pairs or ())
    if len(columns) < len(pairs or ()):
        raise UsageError(f"{flag} names a language twice: give one column for each.")
    return columns
