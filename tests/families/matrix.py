"""The family matrix: every model family that is tested, and those that cannot be pruned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .decoders import DECODERS
from .family import Family
from .hybrids import HYBRIDS
from .mixtures import MIXTURES
from .others import OTHERS

FAMILIES: dict[str, Family] = {family.name: family for family in (*DECODERS, *MIXTURES, *HYBRIDS, *OTHERS)}


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a family is not in the matrix.

    Attributes:
        text: The reason.
        family: A tiny model that is refused; None if transformers no longer has the family.
        message: Part of the error that refuses it.
    """

    text: str
    family: Family | None = None
    message: str = ""


def _refused(text: str, message: str, name: str, config: Mapping[str, Any], **kwargs: Any) -> Reason:
    return Reason(text, Family(name, (), config, **kwargs), message)


_NO_BLOCKS = "No list of blocks was found"
_REMOVED = "Removed in transformers 5."

REASONS: dict[str, Reason] = {
    "xlm": _refused(
        "Attention and feed-forward layers are kept in separate lists: there is no list of blocks.",
        _NO_BLOCKS,
        "xlm",
        {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
        kind="encoder",
    ),
    "albert": _refused(
        "One layer runs at every depth: there are no blocks to prune one after the other.",
        _NO_BLOCKS,
        "albert",
        {"embedding_size": 16},
        kind="encoder",
    ),
    "fsmt": _refused(
        "Its layers are not marked as blocks: name their lists `model.encoder.layers` and `model.decoder.layers` with "
        "`blocks`.",
        _NO_BLOCKS,
        "fsmt",
        {
            "langs": ["en", "de"],
            "src_vocab_size": 160,
            "tgt_vocab_size": 160,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        },
        kind="encoder-decoder",
    ),
    "longcat_flash": _refused(
        "Some of its experts pass their input on and have no matrix; leave the experts dense with `exclude`.",
        "in a layout that is not known",
        "longcat_flash",
        {
            "num_layers": 2,
            "expert_ffn_size": 24,
            "ffn_hidden_size": 48,
            "n_routed_experts": 4,
            "zero_expert_num": 1,
            "moe_topk": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "zamba": _refused(
        "Its Mamba mixers keep one matrix per head in three-dimensional parameters; leave those dense with `exclude`.",
        "in a layout that is not known",
        "zamba",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "attention_head_dim": 16,
            "n_mamba_heads": 2,
            "mamba_d_state": 4,
        },
    ),
    "ernie_m": Reason(_REMOVED),
    "gptsan-japanese": Reason(_REMOVED),
    "open-llama": Reason(f"{_REMOVED} Convert the checkpoint to llama."),
    "transfo-xl": Reason(_REMOVED),
    "xlm-prophetnet": Reason(_REMOVED),
}
