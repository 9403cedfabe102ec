"""Decoders with dense feed-forward layers."""

from .family import Blocks, Family

ATTENTION = "self_attn.{q,k,v,o}_proj"
GATED = "mlp.{gate,up,down}_proj"
LLAMA = (Blocks("model.layers.{0-1}", f"{ATTENTION} {GATED}"),)
FUSED = "self_attention.{query_key_value,dense} mlp.{dense_h_to_4h,dense_4h_to_h}"

DECODERS = (
    Family(
        "llama",
        LLAMA,
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        note="Grouped-query attention, biases, tied embeddings.",
    ),
    Family("mistral", LLAMA, {"sliding_window": 4}, note="Sliding window in every layer."),
    Family(
        "ministral",
        LLAMA,
        {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        note="Sliding and full attention.",
    ),
    Family(
        "qwen2",
        LLAMA,
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        known_as="Qwen 2, Qwen 2.5",
        note="Full and sliding attention, biases on query, key and value.",
    ),
    Family(
        "qwen3",
        (Blocks("model.layers.{0-2}", f"{ATTENTION} {GATED}"),),
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        note="Full and sliding attention, heads wider than hidden size by heads.",
    ),
    Family("gemma", LLAMA, {"head_dim": 8}, note="Tied embeddings."),
    Family(
        "gemma2",
        LLAMA,
        {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
        note="Sliding and full attention, soft capping.",
    ),
    Family(
        "gemma3_text",
        LLAMA,
        {
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        note="Sliding and full attention, two rotary bases.",
    ),
    Family(
        "gemma4_text",
        (
            Blocks(
                "model.layers.{0-1}",
                f"{ATTENTION} {GATED} per_layer_{{input_gate,projection}}",
                "own keys and values",
            ),
            Blocks(
                "model.layers.{2-3}",
                f"self_attn.{{q,o}}_proj {GATED} per_layer_{{input_gate,projection}}",
                "keys and values of an earlier layer",
            ),
        ),
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 160,
            "use_double_wide_mlp": True,
        },
        note="Later layers read keys and values of earlier ones; per-layer embeddings.",
        since="5.23",
    ),
    Family(
        "phi",
        (Blocks("model.layers.{0-1}", "self_attn.{q_proj,k_proj,v_proj,dense} mlp.fc{1,2}"),),
        {"partial_rotary_factor": 0.5, "qk_layernorm": True},
        known_as="Phi 1, Phi 1.5, Phi 2",
        note="Parallel attention and feed-forward, partial rotary embedding, biases.",
    ),
    Family(
        "phi3",
        (Blocks("model.layers.{0-1}", "self_attn.{qkv,o}_proj mlp.{gate_up,down}_proj"),),
        {"sliding_window": 4},
        known_as="Phi 3, Phi 3.5, Phi 4",
        note="Query, key and value in one matrix, gate and up in one matrix, sliding window.",
    ),
    Family(
        "gpt2",
        (Blocks("transformer.h.{0-1}", "attn.c_{attn,proj} mlp.c_{fc,proj}"),),
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        note="Matrices stored as (in, out).",
    ),
    Family(
        "gpt_neox",
        (Blocks("gpt_neox.layers.{0-1}", "attention.{query_key_value,dense} mlp.{dense_h_to_4h,dense_4h_to_h}"),),
        {"rotary_pct": 0.25},  # transformers 5.0 loads every other value as this one
        known_as="GPT-NeoX, Pythia",
        note="Parallel attention and feed-forward, fused query, key and value, partial rotary embedding.",
    ),
    Family(
        "gptj",
        (Blocks("transformer.h.{0-1}", "attn.{q,k,v,out}_proj mlp.fc_{in,out}"),),
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
        note="Parallel attention and feed-forward, partial rotary embedding.",
    ),
    Family(
        "bloom",
        (Blocks("transformer.h.{0-1}", FUSED),),
        {"n_head": 4, "n_layer": 2},
        note="ALiBi, fused query, key and value, tied embeddings.",
    ),
    Family(
        "falcon",
        (Blocks("transformer.h.{0-1}", FUSED),),
        {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False, "new_decoder_architecture": False},
        known_as="Falcon RW",
        note="ALiBi, biases, own subclass of the linear layer.",
    ),
    Family(
        "falcon (rotary)",
        (Blocks("transformer.h.{0-1}", FUSED),),
        {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2},
        known_as="Falcon 7B, 40B, 180B",
        note="New decoder architecture: rotary embedding, grouped-query attention, parallel blocks.",
    ),
    Family(
        "mpt",
        (Blocks("transformer.blocks.{0-1}", "attn.{Wqkv,out_proj} ffn.{up,down}_proj"),),
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        note="ALiBi, fused query, key and value, tied embeddings.",
    ),
    Family(
        "opt",
        (Blocks("model.decoder.layers.{0-1}", "self_attn.{q,k,v,out}_proj fc{1,2}"),),
        {"ffn_dim": 48, "word_embed_proj_dim": 16},
        note="Biases. Projections between narrow embeddings and the layers (350M) are outside the blocks.",
    ),
    Family(
        "xglm",
        (Blocks("model.layers.{0-1}", "self_attn.{q,k,v,out}_proj fc{1,2}"),),
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
        note="Sinusoidal positions, biases, tied embeddings.",
    ),
    Family(
        "cohere",
        LLAMA,
        {"use_qk_norm": True, "logit_scale": 0.25},
        known_as="Command R, Aya 23",
        note="Parallel attention and feed-forward, query and key norms, tied embeddings.",
    ),
    Family(
        "cohere2",
        (Blocks("model.layers.{0-3}", f"{ATTENTION} {GATED}"),),
        {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 4},
        known_as="Command R7B, Aya",
        note="Three sliding layers to one without positions, parallel blocks, tied embeddings.",
    ),
    Family("olmo2", LLAMA, known_as="OLMo 2", note="Norms after the layers, query and key norms."),
    Family(
        "granite",
        LLAMA,
        {"attention_bias": True, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
        note="Multipliers on embeddings, residuals and logits; biases.",
    ),
    Family(
        "glm4",
        (Blocks("model.layers.{0-1}", f"{ATTENTION} mlp.{{gate_up,down}}_proj"),),
        {"head_dim": 8, "partial_rotary_factor": 0.5, "attention_bias": True},
        note="Gate and up in one matrix, partial rotary embedding, biases.",
    ),
    Family("ernie4_5", LLAMA, {"head_dim": 8, "use_bias": True}, note="Biases, tied embeddings."),
    Family("smollm3", LLAMA, {"no_rope_layers": [1, 0]}, note="Layers with and without positions, tied embeddings."),
    Family(
        "stablelm",
        LLAMA,
        {
            "partial_rotary_factor": 0.5,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": True,
        },
        note="Parallel attention and feed-forward, partial rotary embedding, query and key norms, biases.",
    ),
    Family(
        "nemotron",
        (Blocks("model.layers.{0-1}", f"{ATTENTION} mlp.{{up,down}}_proj"),),
        {"partial_rotary_factor": 0.5},
        note="No gate, partial rotary embedding.",
    ),
    Family(
        "apertus",
        (Blocks("model.layers.{0-1}", f"{ATTENTION} mlp.{{up,down}}_proj"),),
        note="No gate, query and key norms.",
        since="5.23",
    ),
)
