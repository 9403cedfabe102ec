"""Decoders whose layers mix attention with recurrence or convolution."""

from .decoders import ATTENTION, GATED
from .family import Blocks, Family

UNCALLED = "`dt_proj` stays dense: its weight is used without calling the layer, so what enters it cannot be seen."

HYBRIDS = (
    Family(
        "qwen3_5_text",
        (
            Blocks(
                "model.layers.0",
                f"linear_attn.{{in_proj_qkv,in_proj_z,in_proj_b,in_proj_a,out_proj}} {GATED}",
                "linear attention",
            ),
            Blocks("model.layers.1", f"{ATTENTION} {GATED}", "full attention"),
        ),
        {
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        known_as="Qwen 3.5 (text)",
        note="Gated delta nets and gated full attention.",
        since="5.23",
    ),
    Family(
        "jamba",
        (
            Blocks(
                "model.layers.{0,2}",
                "mamba.{in,x,out}_proj feed_forward.{gate,up,down}_proj",
                "Mamba, dense",
            ),
            Blocks(
                "model.layers.1",
                f"{ATTENTION} feed_forward.experts.{{0-3}}.{{gate_up,down}}_proj",
                "attention, with experts",
            ),
            Blocks(
                "model.layers.3",
                "mamba.{in,x,out}_proj feed_forward.experts.{0-3}.{gate_up,down}_proj",
                "Mamba, with experts",
            ),
        ),
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        note=UNCALLED,
        since="5.23",
    ),
    Family(
        "mamba",
        (Blocks("backbone.layers.{0-1}", "mixer.{in,x,out}_proj"),),
        {"state_size": 4, "time_step_rank": 4},
        note=f"{UNCALLED} Tied embeddings.",
    ),
    Family(
        "lfm2",
        (
            Blocks("model.layers.0", "conv.{in,out}_proj feed_forward.w{1,2,3}", "convolution"),
            Blocks("model.layers.1", "self_attn.{q_proj,k_proj,v_proj,out_proj} feed_forward.w{1,2,3}", "attention"),
        ),
        {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        note="Short convolutions and attention, tied embeddings.",
    ),
    Family(
        "nemotron_h",
        (
            Blocks("model.layers.0", "mixer.{in,out}_proj", "Mamba 2"),
            Blocks("model.layers.1", "mixer.{q,k,v,o}_proj", "attention"),
            Blocks(
                "model.layers.2",
                "mixer.experts.{0-3}.{up,down}_proj mixer.shared_experts.{up,down}_proj",
                "with experts",
            ),
        ),
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "moe"],
            "head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "moe_latent_size": None,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 4,
            "n_groups": 1,
            "chunk_size": 8,
        },
        known_as="Nemotron 3, Nemotron H",
        note="Experts without a gate.",
        since="5.23",
    ),
)
