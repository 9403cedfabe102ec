"""Loading models and tokenizers as the flags say, with no more trust than they allow."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .errors import DataError, ModelError, errors_as, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..configuration import MWandaConfig


def add_model_options(parser: argparse.ArgumentParser) -> None:
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


def load_config(name: str, args: argparse.Namespace, revision: str | None = None) -> "PreTrainedConfig":
    """Loads the config of a model.

    Raises:
        ModelError: If it cannot be loaded.
    """
    with errors_as(ModelError):
        from transformers import AutoConfig

        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(name, **_source(args, revision))
        except OSError as error:
            raise ModelError(f"{name!r} cannot be loaded: {one_line(error)}") from error
        return config


def load_model(name: str, args: argparse.Namespace, revision: str | None = None) -> "PreTrainedModel":
    """Loads a model with the head that its checkpoint names, or a causal language-model head if that is unknown.

    Raises:
        ModelError: If the model cannot be loaded, or its files lack some of its weights.
    """
    with errors_as(ModelError):
        import transformers

        from ..modeling.architecture import auto_class

        config = load_config(name, args, revision)
        architecture = (config.architectures or [""])[0]
        loader = getattr(transformers, auto_class(architecture, config.is_encoder_decoder))
        try:
            loaded: Any = loader.from_pretrained(
                name,
                config=config,
                dtype=args.dtype,
                device_map=args.device_map or default_device_map(),
                **_source(args, revision),
                use_safetensors=None if args.allow_pickle else True,
                output_loading_info=True,
            )
        except OSError as error:
            hint = "" if args.allow_pickle else " Only safetensors files are read, unless --allow-pickle is given."
            raise ModelError(f"{name!r} cannot be loaded: {one_line(error)}{hint}") from error
        model: PreTrainedModel = loaded[0]
        # transformers replaces missing weights with random ones and a warning.
        if missing := sorted(loaded[1]["missing_keys"]):
            raise ModelError(
                f"The files of {name!r} lack {len(missing)} weights of a {type(model).__name__}, such as "
                f"{missing[0]!r}: they are incomplete, or belong to another kind of model (config.json: "
                f"{architecture!r})."
            )
    return model


def default_device_map() -> str | None:
    """Where models are loaded unless the user says so: on the GPUs, if there are any."""
    import torch

    return "auto" if torch.cuda.is_available() else None


def _source(args: argparse.Namespace, revision: str | None) -> dict[str, Any]:
    return {"revision": revision or "main", "trust_remote_code": args.trust_remote_code}


def load_tokenizer(name: str, args: argparse.Namespace) -> "PreTrainedTokenizerBase | None":
    """Loads the tokenizer of a model; None if it has none, which is not an error for a tokenised dataset.

    Raises:
        ModelError: If `--tokenizer` was given and cannot be loaded.
    """
    from ..data.encoding import read_tokenizer

    source = args.tokenizer or name
    revision = "main" if args.tokenizer else args.revision or "main"
    try:
        return read_tokenizer(source, revision=revision, trust_remote_code=args.trust_remote_code)
    except Exception as error:
        if args.tokenizer is None:
            return None
        raise ModelError(f"No tokenizer can be loaded from {source!r}: {one_line(error)}") from error


def check_prunable(model: "PreTrainedModel", config: "MWandaConfig") -> None:
    """Checks before the calibration that the settings fit the model.

    Raises:
        ModelError: If they do not.
    """
    from ..pruner import MWandaPruner

    with errors_as(ModelError, ValueError, TypeError):
        without_data = config.replace(
            criterion="magnitude", allocation="uniform", refinement="none", reconstruction="none"
        )
        MWandaPruner(without_data).allocate(model)


def check_measurable(model: "PreTrainedModel") -> None:
    """Checks before anything is run that the model can be evaluated.

    Raises:
        ModelError: If it cannot.
    """
    from ..evaluation.perplexity import check_measurable

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


def _device_map(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {error}") from error
