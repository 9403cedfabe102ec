"""Mixtures of experts: every expert has its own matrices, routers stay dense."""

from .decoders import ATTENTION, GATED
from .family import Blocks, Family

EXPERTS = "mlp.experts.{0-3}.{gate_up,down}_proj"
SHARED = "mlp.shared_experts.{gate,up,down}_proj"
LATENT = "self_attn.{kv_a_proj_with_mqa,kv_b_proj,o_proj}"
MIXTURE = (Blocks("model.layers.{0-1}", f"{ATTENTION} {EXPERTS}"),)

MIXTURES = (
    Family(
        "llama4_text",
        (
            Blocks("model.layers.{0,2}", f"{ATTENTION} feed_forward.{{gate,up,down}}_proj", "dense"),
            Blocks(
                "model.layers.{1,3}",
                f"{ATTENTION} feed_forward.shared_expert.{{gate,up,down}}_proj "
                "feed_forward.experts.{0-3}.{gate_up,down}_proj",
                "with experts",
            ),
        ),
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 1, 1, 0],
        },
        known_as="Llama 4 (text)",
        note="Experts stored as (in, out) and given every token, shared expert, dense layers in between, chunked "
        "attention, layers without positions.",
    ),
    Family("mixtral", MIXTURE, {"num_local_experts": 4, "sliding_window": 4}, note="Sliding window."),
    Family(
        "qwen2_moe",
        (
            Blocks("model.layers.0", f"{ATTENTION} {GATED}", "dense"),
            Blocks("model.layers.1", f"{ATTENTION} {EXPERTS} mlp.shared_expert.{{gate,up,down}}_proj", "with experts"),
        ),
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
        },
        note="Dense first layer; shared expert, whose gate stays dense.",
    ),
    Family(
        "qwen3_moe",
        (
            Blocks("model.layers.0", f"{ATTENTION} {GATED}", "dense"),
            Blocks("model.layers.1", f"{ATTENTION} {EXPERTS}", "with experts"),
        ),
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
        },
        note="Dense first layer.",
    ),
    Family(
        "gemma4_text (experts)",
        (
            Blocks(
                "model.layers.0",
                f"{ATTENTION} {GATED} experts.{{0-3}}.{{gate_up,down}}_proj",
                "sliding attention",
            ),
            Blocks(
                "model.layers.1",
                f"self_attn.{{q,k,o}}_proj {GATED} experts.{{0-3}}.{{gate_up,down}}_proj",
                "full attention",
            ),
        ),
        {
            "head_dim": 8,
            "global_head_dim": 8,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
        note="Experts beside a dense feed-forward layer; in full attention the keys are the values.",
        since="5.23",
    ),
    Family(
        "phimoe",
        MIXTURE,
        {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True, "sliding_window": 4},
        known_as="Phi 3.5 MoE",
        note="Router that is a subclass of the linear layer, biases, sliding window.",
    ),
    Family(
        "gpt_oss",
        MIXTURE,
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        known_as="gpt-oss",
        note="Experts stored as (in, out), rows of gate and up interleaved, biases; attention sinks, sliding and full "
        "attention.",
    ),
    Family(
        "olmoe",
        MIXTURE,
        {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 1.0},
        note="Clipped queries, keys and values.",
    ),
    Family(
        "granitemoe",
        (Blocks("model.layers.{0-1}", f"{ATTENTION} block_sparse_moe.experts.{{0-3}}.{{gate_up,down}}_proj"),),
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        since="5.23",
    ),
    Family(
        "deepseek_v2",
        (
            Blocks("model.layers.0", f"self_attn.q_proj {LATENT} {GATED}", "dense"),
            Blocks("model.layers.1", f"self_attn.q_proj {LATENT} {EXPERTS} {SHARED}", "with experts"),
        ),
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
        },
        known_as="DeepSeek V2 Lite",
        note="Latent attention with queries of full rank, shared expert, dense first layer.",
    ),
    Family(
        "deepseek_v3",
        (
            Blocks("model.layers.0", f"self_attn.q_{{a,b}}_proj {LATENT} {GATED}", "dense"),
            Blocks("model.layers.1", f"self_attn.q_{{a,b}}_proj {LATENT} {EXPERTS} {SHARED}", "with experts"),
        ),
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_group": 2,
            "topk_group": 1,
        },
        known_as="DeepSeek V3, R1; Kimi K2",
        note="Latent attention with queries of low rank, grouped routing, shared expert, dense first layer.",
    ),
    Family(
        "glm4_moe",
        (
            Blocks("model.layers.0", f"{ATTENTION} {GATED}", "dense"),
            Blocks("model.layers.1", f"{ATTENTION} {EXPERTS} {SHARED}", "with experts"),
        ),
        {
            "head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "partial_rotary_factor": 0.5,
            "use_qk_norm": True,
            "n_group": 1,
            "topk_group": 1,
        },
        known_as="GLM 4.5, 4.6",
        note="Partial rotary embedding, shared expert, dense first layer.",
    ),
    Family(
        "dbrx",
        (
            Blocks(
                "transformer.blocks.{0-1}",
                "norm_attn_norm.attn.{Wqkv,out_proj} ffn.experts.mlp.{0-3}.{w1,v1,w2}",
            ),
        ),
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
        note="Experts stacked in two-dimensional parameters, fused query, key and value, clipped.",
        since="5.23",
    ),
    Family(
        "jetmoe",
        (
            Blocks(
                "model.layers.{0-1}",
                "self_attention.kv_proj self_attention.experts.{input,output}_linear.{0-3}.weight "
                "mlp.{input,output}_linear.{0-3}.weight",
            ),
        ),
        {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
        note="Experts in attention too; each module is given tokens sorted by expert.",
    ),
    Family(
        "aria_text",
        (Blocks("model.layers.{0-1}", f"{ATTENTION} {EXPERTS} {SHARED}"),),
        {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        note="Experts stored as (in, out), shared experts.",
        since="5.23",
    ),
)
