"""LISA: a few blocks at a time are trained (Pan et al. 2024, arXiv 2403.17919)."""

from collections.abc import Sequence

import numpy as np


def blocks_to_train(blocks: Sequence[str], count: int, step: int, interval: int, seed: int = 0) -> tuple[str, ...]:
    """Chooses the blocks that train at a step (algorithm 1): all with the same probability, others in every period.

    The choice depends on the arguments only, so a training that is resumed makes it again.

    Args:
        blocks: Module paths of all blocks, as `find_blocks` names them.
        count: gamma, how many train at a time.
        step: Optimizer step, from 0.
        interval: K, for how many steps the same blocks train.
        seed: Seed of the choice.

    Returns:
        `count` of the blocks, in their order.

    Raises:
        ValueError: If there are not that many blocks.
    """
    if not 0 <= count <= len(blocks):
        raise ValueError(f"count={count} is not allowed: give 0 to {len(blocks)}, as many blocks as the model has.")
    chosen = np.random.default_rng([seed, step // interval]).choice(len(blocks), count, replace=False)
    return tuple(blocks[index] for index in sorted(chosen))
