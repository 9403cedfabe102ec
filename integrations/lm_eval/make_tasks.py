"""Writes tasks for lm-evaluation-harness; README.md beside this file says how to run them."""

import argparse

from optimum_mwanda.commands.dataset import add_dataset_options, open_text
from optimum_mwanda.commands.errors import CommandError, one_line
from optimum_mwanda.evaluation.harness.tasks import (
    DOCUMENTS_PER_LANGUAGE,
    GROUP,
    write_language_tasks,
    write_xcopa_tasks,
    write_xwinograd_tasks,
)
from optimum_mwanda.evaluation.settings import EvaluationSettings


def main() -> None:
    """Parses the command line and writes the tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    language = commands.add_parser("bits-per-byte", help="bits per byte of each language of any dataset")
    add_dataset_options(language, required=True, purpose="Held-out text")
    language.add_argument("--group", default=GROUP, help="name of the group (default: %(default)s)")
    language.add_argument("--languages", nargs="+", metavar="NAME", help="languages to take (default: all)")
    language.add_argument(
        "--language-column", metavar="NAME", default=EvaluationSettings.language_column, help="default: %(default)s"
    )
    language.add_argument(
        "--text-column", metavar="NAME", default=EvaluationSettings.text_column, help="default: %(default)s"
    )
    language.add_argument(
        "--documents",
        type=int,
        metavar="N",
        default=DOCUMENTS_PER_LANGUAGE,
        help="most documents per language (default: %(default)s)",
    )
    language.add_argument("--characters", type=int, metavar="N", help="length to cut documents to (default: uncut)")
    language.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the sample (default: %(default)s)")

    for name, content in (("xcopa", "test.<language>.jsonl files"), ("xwinograd", "dataset.tsv")):
        benchmark = commands.add_parser(name, help=f"{name} over local files")
        benchmark.add_argument("folder", help=f"folder with the {content}")

    for command in commands.choices.values():
        command.add_argument("--output", required=True, metavar="FOLDER", help="folder for --include_path")
    args = parser.parse_args()

    try:
        names = write_tasks(args)
    except (CommandError, ImportError, OSError, TypeError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {one_line(error)}\n")
    print(f"Wrote {names[0]}: {', '.join(names[1:])}.")


def write_tasks(args: argparse.Namespace) -> list[str]:
    """Writes the requested tasks; returns the name of the group, then those of its tasks."""
    if args.command == "xcopa":
        return write_xcopa_tasks(args.folder, args.output)
    if args.command == "xwinograd":
        return write_xwinograd_tasks(args.folder, args.output)
    with open_text(args, EvaluationSettings(language_column=args.language_column)) as dataset:
        return write_language_tasks(
            dataset,
            args.output,
            group=args.group,
            languages=args.languages,
            language_column=args.language_column,
            text_column=args.text_column,
            documents_per_language=args.documents,
            characters_per_document=args.characters,
            seed=args.seed,
        )


if __name__ == "__main__":
    main()
