"""Encoder-decoders, encoders, and the text stack of vision-language models."""

from .decoders import ATTENTION, GATED
from .family import SIZES, Blocks, Family

T5_ATTENTION = "layer.0.SelfAttention.{q,k,v,o}"
T5_CROSS = "layer.1.EncDecAttention.{q,k,v,o}"
T5_SIZES = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 8}
BART_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
}
BART = (
    Blocks("model.encoder.layers.{0-1}", "self_attn.{q,k,v,out}_proj fc{1,2}", "encoder"),
    Blocks("model.decoder.layers.{0-1}", "{self_attn,encoder_attn}.{q,k,v,out}_proj fc{1,2}", "decoder"),
)
NLLB_ATTENTION = "{self_attn,cross_attention}.{q,k,v,out}_proj"
BERT = "attention.self.{query,key,value} attention.output.dense {intermediate,output}.dense"
VISION = {"hidden_size": 16, "intermediate_size": 16}

OTHERS = (
    Family(
        "t5",
        (
            Blocks("encoder.block.{0-1}", f"{T5_ATTENTION} layer.1.DenseReluDense.{{wi,wo}}", "encoder"),
            Blocks("decoder.block.{0-1}", f"{T5_ATTENTION} {T5_CROSS} layer.2.DenseReluDense.{{wi,wo}}", "decoder"),
        ),
        {**T5_SIZES, "decoder_start_token_id": 0, "feed_forward_proj": "relu"},
        "encoder-decoder",
        note="Relative positions computed by the first block, tied embeddings.",
    ),
    Family(
        "mt5",
        (
            Blocks("encoder.block.{0-1}", f"{T5_ATTENTION} layer.1.DenseReluDense.{{wi_0,wi_1,wo}}", "encoder"),
            Blocks(
                "decoder.block.{0-1}", f"{T5_ATTENTION} {T5_CROSS} layer.2.DenseReluDense.{{wi_0,wi_1,wo}}", "decoder"
            ),
        ),
        {**T5_SIZES, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "encoder-decoder",
        note="Gated feed-forward.",
    ),
    Family(
        "bart", BART, {**BART_SIZES, "forced_eos_token_id": None}, "encoder-decoder", note="Biases, tied embeddings."
    ),
    Family("mbart", BART, BART_SIZES, "encoder-decoder", "mBART, mBART-50", "Biases, tied embeddings."),
    Family(
        "m2m_100", BART, BART_SIZES, "encoder-decoder", "M2M-100, NLLB-200", "Sinusoidal positions, tied embeddings."
    ),
    Family(
        "nllb-moe",
        (
            Blocks("model.encoder.layers.0", "self_attn.{q,k,v,out}_proj ffn.fc{1,2}", "encoder, dense"),
            Blocks(
                "model.encoder.layers.1",
                "self_attn.{q,k,v,out}_proj ffn.experts.expert_{0-3}.fc{1,2}",
                "encoder, with experts",
            ),
            Blocks("model.decoder.layers.0", f"{NLLB_ATTENTION} ffn.fc{{1,2}}", "decoder, dense"),
            Blocks(
                "model.decoder.layers.1",
                f"{NLLB_ATTENTION} ffn.experts.expert_{{0-3}}.fc{{1,2}}",
                "decoder, with experts",
            ),
        ),
        {**BART_SIZES, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        "encoder-decoder",
        "NLLB-MoE",
        "Every expert is a module of its own; dense layers in between.",
    ),
    Family(
        "bert",
        (Blocks("bert.encoder.layer.{0-1}", BERT),),
        kind="encoder",
        known_as="BERT, mBERT",
        note="No generation. The transform of the head is outside the blocks.",
    ),
    Family(
        "xlm-roberta",
        (Blocks("roberta.encoder.layer.{0-1}", BERT),),
        kind="encoder",
        known_as="XLM-R",
        note="No generation. The dense layer of the head is outside the blocks.",
    ),
    Family(
        "gemma3",
        (Blocks("model.language_model.layers.{0-1}", f"{ATTENTION} {GATED}"),),
        {
            "text_config": {
                **SIZES,
                "head_dim": 8,
                "sliding_window": 4,
                "query_pre_attn_scalar": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {
                **VISION,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 1,
            "image_token_index": 150,
            "boi_token_index": 151,
            "eoi_token_index": 152,
        },
        "vision-language",
        note="The text stack is pruned; vision tower and projector stay dense.",
    ),
    Family(
        "qwen3_vl",
        (Blocks("model.language_model.layers.{0-1}", f"{ATTENTION} {GATED}"),),
        {
            "text_config": {
                **SIZES,
                "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
            },
            "vision_config": {
                **VISION,
                "depth": 2,
                "num_heads": 2,
                "patch_size": 4,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 150,
            "video_token_id": 151,
            "vision_start_token_id": 152,
            "vision_end_token_id": 153,
        },
        "vision-language",
        note="The text stack is pruned; the vision tower stays dense.",
    ),
)
