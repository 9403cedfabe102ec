"""Models that torch compiles."""

from typing import Any

from torch import nn


def uncompiled(model: Any) -> Any:
    """The model itself, where `torch.compile(model)` has wrapped it."""
    return model._modules.get("_orig_mod", model) if isinstance(model, nn.Module) else model


def check_not_compiled(model: nn.Module) -> None:
    """Checks that every module of a model runs as it is written, so that its inputs can be seen.

    Raises:
        ValueError: If the model or a part of it is compiled.
    """
    for name, module in model.named_modules():
        if is_compiled(module):
            place = f"{name!r} ({type(module).__name__})" if name else "The model"
            raise ValueError(
                f"{place} is compiled by torch, so what enters its matrices cannot be seen: prune the model first, "
                "then compile it. torch.compile(model) keeps the model itself as model._orig_mod."
            )


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled as a module, in place, or by its forward function."""
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    own_forward = vars(module).get("forward")
    return in_place or "_orig_mod" in module._modules or hasattr(own_forward, "_torchdynamo_orig_callable")
