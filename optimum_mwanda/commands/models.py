"""Loading models and tokenizers as the flags say, with no more trust than they allow."""

import argparse
import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CommandError, DataError, ModelError, errors_as, one_line
from .launched import own_device

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..configuration import MWandaConfig


def add_model_options(parser: argparse.ArgumentParser, only_measured: bool = False) -> None:
    """Adds the flags that `load_model` and `load_tokenizer` read."""
    group = parser.add_argument_group("model")
    group.add_argument("--revision", metavar="NAME", help="Branch, tag or commit of MODEL (default: main)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="Data type to load the weights in (default: auto, as in MODEL)",
    )
    group.add_argument(
        "--device-map",
        type=_device_map,
        metavar="MAP",
        help="Where to load the weights: cpu, cuda, cuda:1, auto, or a JSON object (default: auto if there is a GPU, "
        "else cpu)",
    )
    group.add_argument("--tokenizer", metavar="NAME", help="Name or path of the tokenizer (default: MODEL)")
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="Run Python code that comes with MODEL; it can do anything that you can (default: refuse)",
    )
    group.add_argument(
        "--allow-pickle",
        action="store_true",
        help="Also read weights in pickle files, which can run code (default: safetensors only)",
    )
    if not only_measured:
        group.add_argument(
            "--drop-unused",
            action="store_true",
            help="Leave out weights in the files of MODEL that its class has no place for, and list them (default: "
            "refuse)",
        )


def load_config(name: str, args: argparse.Namespace, revision: str | None = None) -> "PreTrainedConfig":
    """Loads the config of a model.

    Raises:
        ModelError: If it cannot be loaded.
    """
    with model_errors(name):
        from transformers import AutoConfig

        from ..storage.files import repository_id

        if not Path(name).is_dir():
            with errors_as(ModelError, FileNotFoundError):
                repository_id(name)
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(name, **_source(args, revision))
        except (OSError, ValueError) as error:
            _refuse_adapter(name, revision, error)
            raise
        return config


def load_model(
    name: str,
    args: argparse.Namespace,
    revision: str | None = None,
    *,
    warn: Callable[[str], None] | None = None,
    offload: Path | None = None,
    blocks: "Sequence[str] | str | None" = None,
) -> "PreTrainedModel":
    """Loads a model with the class that its config names, and weights stored in 8 or 4 bits as bfloat16.

    Args:
        name: Folder or repository.
        args: The flags of `add_model_options`.
        revision: Branch, tag or commit.
        warn: Told what `--drop-unused` leaves out. None: the model is only measured, so that it may be quantized in any
            way, and may leave weights out.
        offload: If given, blocks stay on disk; a folder for those that the checkpoint holds in another form.
        blocks: As in the settings; only where blocks stay on disk.

    Raises:
        ModelError: If the model cannot be loaded, or its files lack some of its weights; with `warn`, also if they hold
            others that would be lost, or are quantized in a way that cannot be undone.
    """
    with model_errors(name):
        from ..loading.streamed import load_streamed
        from ..loading.whole import load_whole, stored_method

        config = load_config(name, args, revision)
        method = stored_method(config)
        check_storage(name, method, is_measured=warn is None)
        options: dict[str, Any] = {
            "keep_all": warn is not None and not args.drop_unused,
            "dtype": args.dtype,
            **_source(args, revision),
            "use_safetensors": None if args.allow_pickle else True,
        }
        try:
            if offload is not None:
                model, unused = load_streamed(
                    name, config, offload, blocks=blocks, device=args.device_map or own_device(), **options
                )
            else:
                model, unused = load_whole(name, config, device_map=args.device_map or default_device_map(), **options)
        except OSError as error:
            _refuse_adapter(name, revision, error)
            hint = "" if args.allow_pickle else " Only safetensors files are read, unless --allow-pickle is given."
            raise OSError(f"{one_line(error)}{hint}") from error
        except (ImportError, NameError, NotImplementedError) as error:
            if not method:
                raise
            reason = "a package for it is missing" if isinstance(error, NameError) else one_line(error)
            raise ModelError(f"{name!r} is quantized by {method} and cannot be loaded: {reason}") from error
    if warn is not None and unused:
        warn(f"--drop-unused leaves out {len(unused)} weights in the files of {name!r}: {', '.join(unused)}")
    return model


def default_device_map() -> str | None:
    """Where models are loaded unless the user says so: on the GPUs, if there are any."""
    import torch

    if (device := own_device()) is not None:
        return device
    return "auto" if torch.cuda.is_available() else None


@contextlib.contextmanager
def model_errors(name: str) -> Iterator[None]:
    """Inside the block, all errors are model errors, in words of the command line."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{name!r} cannot be loaded: {in_flags(one_line(error))}") from error
    except CommandError:
        raise
    except Exception as error:
        raise ModelError(in_flags(one_line(error))) from error


_ASKED = r"(?:(?P<verb>pass|set)(?P<ing>t?ing)? (?:the )?(?:argument |option )?)?[`']?{}[`']?"
_FLAGS = {
    re.compile(_ASKED.format("trust_remote_code=True")): "--trust-remote-code",
    re.compile(_ASKED.format("use_safetensors=False")): "--allow-pickle",
    re.compile(_ASKED.format("token=<your_token>")): "HF_TOKEN in the environment",
}


def in_flags(message: str) -> str:
    """An error of transformers with the flags of the command line instead of arguments of Python."""
    for argument, flag in _FLAGS.items():
        message = argument.sub(functools.partial(_said, flag), message)
    return message


def _said(flag: str, found: re.Match[str]) -> str:
    return flag if found["verb"] is None else f"giving {flag}" if found["ing"] else f"give {flag}"


def _refuse_adapter(name: str, revision: str | None, error: Exception) -> None:
    """Says so if what cannot be loaded as a model is an adapter.

    Raises:
        ModelError: If it is.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        path = find_adapter_config_file(name, revision=revision or "main")
        base = None if path is None else json.loads(Path(path).read_bytes()).get("base_model_name_or_path")
    except Exception:  # nothing more is known, and the first error says what went wrong
        return
    if path is not None:
        raise ModelError(
            f"{name!r} holds an adapter for {str(base)!r}, and not a model: load both with peft, call "
            "merge_and_unload(), or for a pruned model optimum_mwanda.merge_preserving_masks, then save_pretrained(), "
            "and give that folder."
        ) from error


def check_storage(name: str, method: str, is_measured: bool) -> None:
    """Refuses checkpoints that are quantized for good, before their weights are read.

    Raises:
        ModelError: If there is no way to load plain weights or, of a model that is only measured, any weights.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    from ..modeling.quantized import DEQUANTIZABLE
    from ..storage.coded import COMPRESSED

    if not method or method in (*DEQUANTIZABLE, COMPRESSED):
        return
    if not is_measured:
        raise ModelError(
            f"{name!r} is quantized by {method}: give the dense model that it was made from, prune that, and then "
            f"quantize it. Only checkpoints stored by {' or '.join(DEQUANTIZABLE)} can be pruned as they are."
        )
    # transformers loads the packed numbers of a method that it does not know as if they were weights.
    if not any(known.startswith(method) for known in AUTO_QUANTIZATION_CONFIG_MAPPING):  # bitsandbytes_8bit and _4bit
        raise ModelError(f"{name!r} is quantized by {method}, which transformers cannot load.")


def _source(args: argparse.Namespace, revision: str | None) -> dict[str, Any]:
    return {"revision": revision or "main", "trust_remote_code": args.trust_remote_code}


def load_tokenizer(name: str, args: argparse.Namespace) -> "PreTrainedTokenizerBase | None":
    """Loads the tokenizer of a model; None if it has none, which is not an error for a tokenised dataset.

    Raises:
        ModelError: If `--tokenizer` was given and cannot be loaded.
    """
    from ..data.tokenizer_loading import read_tokenizer

    source = args.tokenizer or name
    revision = "main" if args.tokenizer else args.revision or "main"
    try:
        return read_tokenizer(source, revision=revision, trust_remote_code=args.trust_remote_code)
    except Exception as error:
        if args.tokenizer is None:
            return None
        raise ModelError(f"No tokenizer can be loaded from {source!r}: {in_flags(one_line(error))}") from error


def check_prunable(model: "PreTrainedModel", config: "MWandaConfig") -> None:
    """Checks before the calibration that the settings fit the model.

    Raises:
        ModelError: If they do not.
    """
    from ..pruner import MWandaPruner

    with errors_as(ModelError, ValueError, TypeError):
        by_text = {"refinement": "none", "reconstruction": "none", "sensitivity": "none"}
        without_data = config.replace(criterion="magnitude", allocation="uniform", **by_text)
        MWandaPruner(without_data).allocate(model)


def check_measurable(model: "PreTrainedModel") -> None:
    """Checks before anything is run that the model can be evaluated.

    Raises:
        ModelError: If it cannot.
    """
    from ..modeling.likelihood import check_measurable

    with errors_as(ModelError, ValueError):
        check_measurable(model)


@contextlib.contextmanager
def pruning_errors() -> Iterator[None]:
    """Inside the block, where a model that fits the settings reads data, errors in the data become data errors."""
    import torch

    from ..walking.failure import bare_failures

    no_fault_of_the_data = (FloatingPointError, MemoryError, torch.cuda.OutOfMemoryError)
    with errors_as(ModelError, *no_fault_of_the_data), errors_as(DataError, ValueError, TypeError), bare_failures():
        yield


def one_device(device_map: Any) -> str | None:
    """The device that `--device-map` names, if it names one."""
    is_one = isinstance(device_map, str) and re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", device_map)
    return device_map if is_one else None


def _device_map(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
