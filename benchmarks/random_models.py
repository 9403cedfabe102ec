"""Models with random weights, and random text for them, for what does not depend on either."""

import argparse
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM


def make_model(shape: str, args: argparse.Namespace) -> Any:
    """A random model; a shape is a hidden size, `mixture` or `mixture-HIDDEN`."""
    name, _, size = shape.rpartition("-") if shape.startswith("mixture-") else shape.partition("-")
    hidden = 512 if shape == "mixture" else int(size or name)
    common = {
        "vocab_size": args.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": args.layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(hidden // 128, 1),
        "max_position_embeddings": args.sequence_length,
    }
    torch.manual_seed(0)
    if shape.startswith("mixture"):
        model: Any = MixtralForCausalLM(MixtralConfig(**common, num_local_experts=8, num_experts_per_tok=2))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common))
    return model.to(args.device, getattr(torch, args.dtype)).eval()


def make_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Random text: `samples` chunks in each language."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(args.vocabulary, (args.languages, args.samples, args.sequence_length), generator=generator)
    return [
        {"language": f"l{number:02d}", "input_ids": row.tolist()} for number, part in enumerate(ids) for row in part
    ]
