"""A flag for every setting of `MWandaConfig`, made from the fields of the dataclass."""

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration import MWandaConfig
from ..legal import Number, OneOf
from ..presets import PRESETS, preset_settings
from .errors import UsageError, errors_as, one_line
from .parser import with_default

_THEMES = {
    "how much and where": (
        *("sparsity", "pattern", "group", "include", "exclude", "blocks", "experts_policy", "min_expert_tokens"),
    ),
    "which weights": (
        *("criterion", "base", "ria_exponent", "variance", "variance_weight"),
        *("activation", "activation_threshold", "activation_exponent"),
    ),
    "sparsity of each block": (
        *("allocation", "allocation_strength", "cwl_direction", "owl_multiplier"),
        *("min_block_sparsity", "max_block_sparsity"),
    ),
    "calibration text": (
        *("language_column", "text_column", "target_column", "languages", "samples_per_language", "reservoir"),
        *("calibration_tolerance", "sequence_length", "bos", "batch_size", "calibration", "seed"),
    ),
    "weights of languages": ("language_weights", "language_temperature", "minimax_rounds", "minimax_bound"),
    "better masks": (
        *("sensitivity", "sensitivity_exponent"),
        *("refinement", "refinement_shrinkage", "refinement_ridge", "refinement_reach", "tune_regularisation"),
    ),
    "new values": (
        *("reconstruction", "damping", "reconstruction_shrinkage", "reconstruction_region", "reconstruction_blocks"),
        *("reconstruction_epochs", "reconstruction_batch_size", "reconstruction_learning_rate"),
        "reconstruction_held_out",
    ),
}
"""What settings are about; the help shows them so."""


def add_settings(
    parser: argparse.ArgumentParser, settings: type[Any] = MWandaConfig, leave_out: Collection[str] = ()
) -> None:
    """Adds `--config`, `--preset` and a flag per field; without its flag a field is what these say, or the default."""
    group = parser.add_argument_group("settings", "described in help(MWandaConfig) and docs/guide.md")
    group.add_argument(
        "--config", metavar="FILE", help="JSON file with settings; the flags below override it (default: none)"
    )
    group.add_argument(
        "--preset",
        choices=list(PRESETS),
        help="All settings of a published method, which the flags below override; not with --config (default: none)",
    )
    groups: dict[str | None, Any] = {None: group}
    for field in dataclasses.fields(settings):
        if field.name not in leave_out:
            theme = next((theme for theme, names in _THEMES.items() if field.name in names), None)
            if theme not in groups:
                groups[theme] = parser.add_argument_group(f"settings: {theme}")
            groups[theme].add_argument(
                flag(field.name),
                dest=field.name,
                help=with_default(field.metadata["help"].rstrip("."), _shown(field)),
                **form_of(field),
            )


def read_settings(args: argparse.Namespace, settings: type[Any] = MWandaConfig, **changes: Any) -> Any:
    """Builds the config from `--config` or `--preset` and the flags that were given, which win.

    Args:
        args: Parsed arguments.
        settings: The dataclass that `add_settings` was called with.
        **changes: Further values, which take precedence.

    Raises:
        UsageError: If the file or a value is not allowed.
    """
    given = {
        field.name: _value(field, getattr(args, field.name))
        for field in dataclasses.fields(settings)
        if getattr(args, field.name, None) is not None
    }
    if args.config is not None and args.preset is not None:
        raise UsageError("--config and --preset both say where the settings start from: give one of them.")
    with errors_as(UsageError, OSError, ValueError, TypeError):
        if args.config is not None and _is_missing_path(args.config):
            raise UsageError(f"--config {args.config}: there is no such file or folder.")
        if args.config is None:  # not through a default config, whose values would imply others
            start = {} if args.preset is None else preset_settings(args.preset)
            return settings(**{**start, **given, **changes})
        try:
            config = settings.from_pretrained(args.config)
        except OSError as error:  # a failed look-up on the Hub does not say what was looked for
            raise UsageError(f"--config {args.config}: {one_line(error)}") from error
        return config.replace(**given, **changes)


def _is_missing_path(name: str) -> bool:
    """Whether there is nothing at the path and the name is not a repository id to look up on the Hub."""
    is_repository = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not name.endswith(".json")
    return not is_repository and not Path(name).exists()


def flag(name: str) -> str:
    """`--samples-per-language` for `samples_per_language`."""
    return "--" + name.replace("_", "-")


def _types(field: Any) -> list[Any]:
    """The types that a value may have besides None; generic types without their parameters."""
    union = typing.get_origin(field.type) in (typing.Union, types.UnionType)
    members = typing.get_args(field.type) if union else (field.type,)
    return [typing.get_origin(member) or member for member in members if member is not type(None)]


def form_of(field: Any) -> dict[str, Any]:
    """How argparse should read a field."""
    kinds = _types(field)
    legal = field.metadata.get("legal")
    if type(legal) is OneOf and legal.register is None:
        return {"choices": legal.names}
    if any(issubclass(kind, Mapping) for kind in kinds):
        return {"nargs": "+", "metavar": "NUMBER|KEY=NUMBER" if int in kinds else "NAME|KEY=VALUE"}
    if isinstance(legal, OneOf):  # a plugin may add names, or an error says more than that of argparse
        return {"metavar": f"{{{','.join(legal.names)}}}"}
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if any(issubclass(kind, Sequence) and kind is not str for kind in kinds):
        return {"nargs": "+", "metavar": "NAME"}
    if str in kinds:
        return {"metavar": "NAME"}
    return {"type": float if float in kinds else int if int in kinds else _json, "metavar": "VALUE"}


def _value(field: Any, given: Any) -> Any:
    """The value of a field, from what argparse has read."""
    if not any(issubclass(kind, Mapping) for kind in _types(field)):
        return given
    read, alone, pairs = (int, "number", "sw=64 yo=16") if int in _types(field) else (float, "name", "sw=2 yo=1.5")
    try:
        if len(given) == 1 and "=" not in given[0]:
            return given[0] if read is float else read(given[0])
        words = [word.rpartition("=") for word in given]
        if not all(key and sign for key, sign, _ in words):
            raise ValueError
        return {key: read(number) for key, _, number in words}
    except ValueError:
        shown = " ".join(given)
        raise UsageError(f"{flag(field.name)} {shown}: give one {alone}, or pairs such as {pairs}.") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error


def _shown(field: Any) -> str:
    """The default, and the range if it has one."""
    default = "none" if field.default == () else str(field.default)
    legal = field.metadata.get("legal")
    return f"{default}; {legal.range}" if isinstance(legal, Number) else default
