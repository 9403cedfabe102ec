"""`optimum-cli mwanda plan`, and what `prune --dry-run` does."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Result, Subcommand, add_common_options
from .dataset import add_dataset_options, open_text
from .errors import UsageError, errors_as
from .models import (
    add_model_options,
    check_storage,
    load_config,
    load_tokenizer,
    model_errors,
    one_device,
    pruning_errors,
)
from .setting_flags import add_settings, read_settings

if TYPE_CHECKING:
    from ..configuration import MWandaConfig
    from ..loading.forecast import PruningForecast


class PlanCommand(Subcommand):
    """Say what pruning a model would take: what is pruned, memory, disk, passes over the text, and time.

    No weights are read: the config and the headers of the files say enough, and one block with random weights is timed.
    """

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""
        parser.description = PlanCommand.__doc__
        parser.epilog = "Example: optimum-cli mwanda plan MODEL --languages en fr sw --sparsity 0.5"
        parser.add_argument("model", metavar="MODEL", help="Folder or repository of the dense model")
        parser.add_argument(
            "--compressed", action="store_true", help="As for prune: store only the non-zeros (default: all weights)"
        )
        parser.add_argument(
            "--activations",
            metavar="PLACE",
            default="cpu",
            help="As for prune: where hidden states lie, device, cpu, or a folder (default: cpu)",
        )
        parser.add_argument("--no-timing", action="store_true", help="Do not time a block (default: time one)")
        add_dataset_options(
            parser, required=False, purpose="Calibration text; without it, full samples of --languages are assumed"
        )
        add_model_options(parser)
        add_settings(parser)
        add_common_options(parser)

    def execute(self) -> Result:
        """Reads headers and adds up."""
        args, config = self.args, read_settings(self.args)
        forecast = foresee(args, config, timed=not args.no_timing)
        values = forecast.to_dict()
        too_little = _lack_of_memory(forecast, args, is_streamed=False)
        if too_little and forecast.unstreamed:
            return Result(str(forecast), values, f"{too_little}, and it cannot be streamed: {forecast.unstreamed}")
        if least := _lack_of_memory(forecast, args, is_streamed=True):
            return Result(str(forecast), values, f"even streamed, {least}")
        if too_little:
            self.warn(f"{too_little}: give --stream.")
        return Result(str(forecast), values)


def dry_run(args: argparse.Namespace, config: "MWandaConfig") -> Result:
    """What `prune` with the same arguments would take, and why it would fail if it would.

    Args:
        args: The arguments of `prune`, which has checked them.
        config: The settings.
    """
    from ..storage.scratch import progress_bytes

    forecast = foresee(args, config)
    chosen = forecast.stream if args.stream else forecast.memory
    output = Path(args.output).resolve()
    folder = next(parent for parent in output.parents if parent.exists())
    needed = max(0, chosen.disk - (progress_bytes(output) if args.stream else 0))  # that is used again, or deleted
    failure = None
    if (free := shutil.disk_usage(folder).free) < needed:
        failure = f"the disk of the output has {free:,} bytes free, but {needed:,} are needed."
    elif args.stream and forecast.unstreamed:
        failure = f"it cannot be streamed: {forecast.unstreamed}"
    elif too_little := _lack_of_memory(forecast, args, args.stream):
        failure = f"{too_little}{'.' if args.stream or forecast.unstreamed else ': give --stream.'}"
    return Result(str(forecast), forecast.to_dict(), failure)


def foresee(args: argparse.Namespace, config: "MWandaConfig", timed: bool = True) -> "PruningForecast":
    """The forecast for arguments of `prune` or `plan`.

    Raises:
        DataError: If the calibration text cannot be used.
        ModelError: If the model cannot be read, or the settings do not fit it.
        UsageError: If hidden states cannot be kept where they should be.
    """
    from ..loading.forecasting import foresee as look_ahead
    from ..loading.forecasting import open_empty
    from ..loading.whole import stored_method
    from ..walking.store import check_activations

    with errors_as(UsageError, ValueError):
        check_activations(args.activations)
    revision = args.revision or "main"
    check_storage(args.model, stored_method(load_config(args.model, args, revision)), is_measured=False)
    with open_text(args, config) as dataset:
        with model_errors(args.model):
            checkpoint = open_empty(
                args.model,
                config,
                args.dtype,
                use_safetensors=None if args.allow_pickle else True,
                revision=revision,
                trust_remote_code=args.trust_remote_code,
            )
        tokenizer = None if dataset is None else load_tokenizer(args.model, args)
        with pruning_errors():
            return look_ahead(
                checkpoint,
                dataset,
                tokenizer,
                device=one_device(args.device_map),
                activations=args.activations,
                compressed=args.compressed,
                timed=timed,
            )


def _lack_of_memory(forecast: "PruningForecast", args: argparse.Namespace, is_streamed: bool) -> str | None:
    """What is missing on this machine; None if nothing is."""
    import psutil
    import torch

    from ..loading.forecast import in_bytes

    needed = forecast.stream if is_streamed else forecast.memory
    places = [("memory", needed.memory, psutil.virtual_memory().available)]
    if needed.device_memory is not None and forecast.device.startswith("cuda") and torch.cuda.is_available():
        places.append(
            (f"memory of {forecast.device}", needed.device_memory, torch.cuda.mem_get_info(forecast.device)[0])
        )
    for place, size, free in places:
        if size > free:
            return f"the {place} does not suffice: {in_bytes(size)} are needed, and {in_bytes(free)} are free"
    return None
