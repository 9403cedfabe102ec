"""Tiny models whose checkpoints are stored in different ways."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LOCAL: dict[str, Any] = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
SMALL_EXPERTS: dict[str, Any] = {**SIZES, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
TRANSLATION: dict[str, Any] = {
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
}

MIXTURES: dict[str, dict[str, Any]] = {
    # One matrix per expert and projection on disk, with other names than in memory.
    "mixtral": LOCAL,
    # One matrix per expert and projection on disk.
    "qwen3_moe": {**SMALL_EXPERTS, "num_experts": 4, "mlp_only_layers": [0]},
    "deepseek_v3": {
        **SMALL_EXPERTS,
        "head_dim": None,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
    },
    "jamba": {
        **LOCAL,
        "num_hidden_layers": 4,
        "attn_layer_period": 4,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    # All experts in one tensor on disk: with other names, transposed, and stacked to two dimensions.
    "granitemoe": LOCAL,
    "gpt_oss": {**LOCAL, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": {**LOCAL, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2, "attention_chunk_size": 16},
    "dbrx": {
        "vocab_size": 96,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    # The experts' parameter is called `weight`, as that of a linear layer.
    "jetmoe": {**LOCAL, "kv_channels": 8},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 96,
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    },
    "m2m_100": TRANSLATION,
    # Experts that are modules of their own, in an encoder-decoder.
    "nllb-moe": {
        **TRANSLATION,
        "num_experts": 4,
        "expert_capacity": 8,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 2,
    },
}
FAMILIES = {**MIXTURES, **ENCODER_DECODERS}


def make_family(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model."""
    settings = {key: value for key, value in FAMILIES[name].items() if value is not None}
    load = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    config = AutoConfig.for_model(name, **settings)
    if name == "jamba" and Version(transformers.__version__) < Version("5.23"):
        config.use_mamba_kernels = False  # 5.0 runs on no CPU otherwise, and 5.23 deprecates the setting
    torch.manual_seed(seed)
    return load.from_config(config).eval()


def load_family(name: str, folder: Any, **options: Any) -> PreTrainedModel:
    """Loads a saved one."""
    load = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    return load.from_pretrained(folder, **options).eval()


def logits_of(name: str, model: PreTrainedModel) -> torch.Tensor:
    """What the model says to some tokens."""
    ids = torch.arange(3, 23).view(2, 10)
    inputs = {"decoder_input_ids": ids[:, :4]} if name in ENCODER_DECODERS else {}
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits
