"""Where a record is kept in a model: in its config, and in the configs of the parts that may be loaded alone."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel

from .schema import RECORD_KEY

if TYPE_CHECKING:
    from .schema import SparsityRecord


def attach_record(model: Any, record: "SparsityRecord") -> None:
    """Writes a record into the config of a model, and of each part of a composite model that it says something about.

    transformers can load the text part of a multimodal checkpoint alone, with the part's own config.

    Args:
        model: The pruned model.
        record: Its record.
    """
    inner = {id(config) for config in nested_configs(model.config)}
    blocks = [block.name for block in record.blocks]
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        holds = not path or any(block.startswith(f"{path}.") for block in blocks)
        if isinstance(module, PreTrainedModel) and id(config) in inner and holds:
            setattr(config, RECORD_KEY, record.to_dict())
    setattr(model.config, RECORD_KEY, record.to_dict())


def take_records(model: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The values of every config in a model, and of these the record, for `put_records`."""
    found = [vars(config) for config in nested_configs(model.config)]
    return [(values, {RECORD_KEY: values[RECORD_KEY]} if RECORD_KEY in values else {}) for values in found]


def put_records(records: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Makes the records in a model what they were when `take_records` was called."""
    for values, record in records:
        values.pop(RECORD_KEY, None)
        values.update(record)


def nested_configs(config: Any) -> Iterator[Any]:
    """A config and the configs in it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from nested_configs(value)
