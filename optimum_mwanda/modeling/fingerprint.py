"""Telling models apart."""

import hashlib

import torch
from torch import nn

VALUES = 16


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the name, shape and dtype of every parameter and 16 of its values, evenly spaced.

    It takes next to no time and tells models apart that were trained differently; it is no proof against forgery.
    Values of offloaded parameters are left out.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}\0{tuple(parameter.shape)}\0{parameter.dtype}\0".encode())
        if parameter.device.type != "meta":
            step = max(1, parameter.numel() // VALUES)
            sample = parameter.detach().flatten()[::step][:VALUES]
            digest.update(sample.to("cpu", torch.float32).numpy().astype("<f4").tobytes())
    return digest.hexdigest()
