"""What a tool is given, and what is asked of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reading import bytes_in_memory, response_to_identity
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Source:
    """A pruned checkpoint, the masks of its matrices, text to calibrate on, and a folder to write to."""

    folder: Path
    masks: dict[str, Tensor]
    tokenizer: Any
    texts: list[str]
    scratch: Path

    def load(self, folder: Path | None = None, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder or self.folder, **options)

    def reload(self, model: Any, config: Any = None) -> Any:
        """Saves a quantized model and loads it again: some tools make their packed format only in files."""
        model.save_pretrained(self.scratch / "quantized")
        return self.load(self.scratch / "quantized", **({} if config is None else {"quantization_config": config}))


@dataclass(frozen=True)
class Scheme:
    """One way to quantize with one tool; `packages` must be installed for it."""

    tool: str
    name: str
    packages: tuple[str, ...]
    quantize: Callable[[Source], Any]
    dequantize: Callable[[nn.Module, str, int], Tensor] = response_to_identity
    stored: Callable[[nn.Module, str], int] = bytes_in_memory
