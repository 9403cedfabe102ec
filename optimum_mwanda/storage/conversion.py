"""Names of stored tensors and of the parameters that transformers makes of them: many mixtures of experts are stored
with one matrix per expert and loaded with one parameter for all experts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAVES_OFFLOADED = "5.14"
"""Older versions of transformers look for offloaded weights under the names that they get in the files."""


def parameter_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Finds the parameter that each stored tensor becomes, entirely or in part.

    transformers has a table of what it renames, merges and splits, by model type and class. No model is built for this.

    Args:
        config: Content of `config.json`, untrusted: it only chooses among the rules of transformers.
        names: Names of the stored tensors.

    Returns:
        Stored name to the name in a loaded model, except for a prefix that only some classes of a family have. Tensors
        that are split into several parameters are left out.
    """
    find: Callable[[str], list[Any] | None] = get_checkpoint_conversion_mapping
    rules = [rule for key in _identifiers(config) for rule in find(key) or ()]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found = {}
    for name in sorted(names):  # some renamings rely on this order to find out whether they apply at all
        parameter = name
        for renaming in renamings:
            parameter, _ = renaming.rename_source_key(parameter)
        is_split = False
        for converter in converters:
            parameter, pattern = converter.rename_source_key(parameter)
            if pattern is not None:  # transformers applies at most one of them
                is_split = len(converter.target_patterns) > 1
                break
        if not is_split:
            found[name] = parameter
    return found


def check_can_be_saved(model: "PreTrainedModel") -> None:
    """Checks that the installed transformers can save a model as it is now, wherever accelerate keeps its weights.

    Args:
        model: The model, in memory or offloaded.

    Raises:
        ValueError: If weights are offloaded and have other names or shapes in the files.
    """
    state = model.state_dict()
    is_new = Version(transformers.__version__) >= Version(_SAVES_OFFLOADED)
    if is_new or not any(tensor.device.type == "meta" for tensor in state.values()):
        return
    stored = revert_weight_conversion(model, {name: tensor.to("meta") for name, tensor in state.items()})
    if renamed := sorted(stored.keys() - state.keys()):
        raise ValueError(
            f"transformers {transformers.__version__} cannot save a {type(model).__name__} of which weights are "
            f"offloaded, because the files have other names for them, such as {renamed[0]!r}: install transformers "
            f"{_SAVES_OFFLOADED} or later, or load the whole model into memory."
        )


def _identifiers(config: Mapping[str, Any]) -> list[str]:
    """The keys for the rules of a model and of the models inside it."""
    architectures = config.get("architectures")
    found: list[Any] = list(architectures) if isinstance(architectures, list) else []
    for part in _configs(config):
        kind = part.get("model_type")
        if isinstance(kind, str):
            found += [kind, MODEL_MAPPING_NAMES.get(kind)]
    return list(dict.fromkeys(key for key in found if isinstance(key, str)))


def _configs(config: Mapping[str, Any], depth: int = 3) -> Iterator[Mapping[str, Any]]:
    """A config and the configs inside it; composite models nest them at most this deep."""
    yield config
    if depth:
        for value in config.values():
            if isinstance(value, Mapping):
                yield from _configs(value, depth - 1)
