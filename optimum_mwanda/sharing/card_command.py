"""The command line in a model card, for pruning with the settings of the record."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..config_file import CONFIG_NAME
from ..configuration import MWandaConfig
from ..values import is_self_written
from .card_text import Markdown, clean, shell_word


def describe_command(
    settings: MWandaConfig, languages: Iterable[str], location: str, is_planned: bool = False
) -> tuple[Markdown, bool]:
    """The command line that repeats a pruning.

    Args:
        settings: Settings of the pruning.
        languages: Languages used for calibration; none if no text was used.
        location: Where to load the dense model from.
        is_planned: Whether a plan gave every matrix its sparsity.

    Returns:
        One line, and whether it reads settings from their file because flags cannot express them.
    """
    languages = list(languages)
    named = _settings_to_name(settings, languages).items()
    flags = [_flag(name, _words(value)) for name, value in named if value != []]
    needs_file = None in flags
    words = [
        f"optimum-cli mwanda prune {shell_word(location)} pruned",
        *(["--dataset calibration.jsonl"] if languages else []),
        *(["self.jsonl"] if any(map(is_self_written, languages)) else []),
        *(["--plan plan.json"] if is_planned else []),
        *([f"--config {CONFIG_NAME}"] if needs_file else []),
        *(flag for flag in flags if flag is not None),
    ]
    return Markdown(" ".join(words)), needs_file


def _settings_to_name(config: MWandaConfig, found: list[str]) -> dict[str, Any]:
    """The settings that a command line must name, in its order."""
    settings = config.to_dict()
    # Naming the languages keeps out others that the dataset may have gained since.
    settings["languages"] = settings["languages"] or found
    first = ("sparsity", "criterion", "pattern", "allocation")
    last = ("languages", "seed")
    changed = [name for name in settings if not _is_implied(name, config)]
    return {name: settings[name] for name in [*first, *(n for n in changed if n not in first + last), *last]}


def _is_implied(name: str, config: MWandaConfig) -> bool:
    """Whether a setting follows from the others, or is the default."""
    others = {other: value for other, value in config.to_dict().items() if other != name}
    try:
        return MWandaConfig.from_dict(others) == config
    except ValueError:  # the other settings need it
        return False


def _words(value: Any) -> list[str]:
    """The words after the flag of a setting; none where the flag says it all."""
    if value is True:
        return []
    if isinstance(value, Mapping):
        return [f"{key}={entry!r}" for key, entry in value.items()]
    return [str(entry) for entry in (value if isinstance(value, list) else [value])]


def _flag(name: str, words: list[str]) -> str | None:
    """A setting as a flag with its words; None if a command line cannot express it on one visible line."""
    flag = "--" + name.replace("_", "-")
    # argparse takes "--" for the end of all flags, wherever it stands.
    if "--" in words or any(clean(word) != word for word in words):
        return None
    if name == "language_weights" and any(word.startswith("=") for word in words):
        return None
    if not any(word.startswith("-") for word in words):
        return " ".join([flag, *map(shell_word, words)])
    # A word that looks like a flag must be joined to its own flag, which then takes no second word.
    return f"{flag}={shell_word(words[0])}" if len(words) == 1 else None
