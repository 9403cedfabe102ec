"""Gradual pruning: how the sparsity rises during training (Zhu & Gupta 2017, arXiv 1710.01878)."""


def default_interval(steps: int) -> int:
    """Steps between two changes of the masks where none are given: ten changes in a training, or more in a long one."""
    return min(100, max(steps // 10, 1))


def cubic_sparsity(step: int, first_step: int, last_step: int, final: float, initial: float = 0.0) -> float:
    """The sparsity at a step: s_f + (s_i - s_f) * (1 - (t - t_0) / (t_f - t_0)) ** 3 (equation 1).

    It rises fast while there is much to prune, and slowly at the end.

    Args:
        step: t.
        first_step: t_0; before it, the sparsity is `initial`.
        last_step: t_f, which is t_0 + n * dt in the paper; from it on, the sparsity is `final`.
        final: s_f.
        initial: s_i.
    """
    left = 1 - (step - first_step) / (last_step - first_step) if last_step > first_step else float(step < first_step)
    return final + (initial - final) * min(max(left, 0.0), 1.0) ** 3


def pruning_steps(first_step: int, last_step: int, interval: int) -> tuple[int, ...]:
    """The steps at which weights are pruned: every `interval`, and the last one in any case."""
    return tuple(dict.fromkeys([*range(first_step, last_step, interval), last_step]))
