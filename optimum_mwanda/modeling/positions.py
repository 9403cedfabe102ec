"""How many tokens a model can take."""

from typing import Any


def max_positions(model: Any) -> int | None:
    """Number of positions in the model's config; None if it does not say."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def max_length(model: Any) -> int | None:
    """How many tokens a sequence may have; None if there is no bound.

    Models like RoBERTa give padding a position, and count those of tokens from the one behind it.
    """
    positions = max_positions(model)
    if positions is None:
        return None
    tables = (getattr(module, "position_embeddings", None) for module in model.modules())
    paddings = [getattr(table, "padding_idx", None) for table in tables]
    return positions - max((padding + 1 for padding in paddings if padding is not None), default=0)


def resolve_sequence_length(requested: int | None, model: Any, default: int = 512) -> int:
    """Checks a sequence length against the model's positions, or picks `default` within them.

    Raises:
        ValueError: If `requested` exceeds the model's positions.
    """
    limit = max_length(model)
    if requested is None:
        return min(default, limit or default)
    if limit is not None and requested > limit:
        raise ValueError(f"sequence_length={requested} exceeds the model's {limit} positions: give at most {limit}.")
    return requested
