"""The best swaps of a pruned and a kept weight, row by row."""

import numpy as np
import torch
from torch import Tensor

_LOOKED_AT = 2
"""Weights of either side that are looked at for each swap that a round may make."""


def best_swap(weight: Tensor, restore: Tensor, remove: Tensor, gram: Tensor, tried: int) -> tuple[Tensor, ...]:
    """Change of the error and the two columns of the best swap of every row.

    Args:
        weight: Shape `(rows, in)`.
        restore: What restoring each weight alone would change, infinite for kept ones, shape `(rows, in)`.
        remove: What pruning each weight alone would change, infinite for pruned ones, shape `(rows, in)`.
        gram: Shape `(in, in)`.
        tried: Of how many of the lowest of either side all pairs are compared.

    Returns:
        The change, the column to restore and the column to prune, shape `(rows,)` each.
    """
    (give, back), (take, out) = (lowest(change, tried) for change in (restore, remove))
    joint = _joint(weight.gather(1, back), weight.gather(1, out), gram, back, out)
    change, i, j = _best_pair(give, take, joint, pairs_only=False)
    return change.squeeze(1), back.gather(1, i).squeeze(1), out.gather(1, j).squeeze(1)


def best_swaps(
    weight: Tensor,
    restore: Tensor,
    remove: Tensor,
    gram: Tensor,
    tried: int,
    least: Tensor,
    in_runs: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Several swaps of every row among the weights that promise most, each the best after those before it.

    No weight takes part in two of them, and a row makes no more once none that is left gains enough.

    Args:
        weight: Shape `(rows, in)`.
        restore: What restoring each weight alone would change, infinite for kept ones, shape `(rows, in)`.
        remove: What pruning each weight alone would change, infinite for pruned ones, shape `(rows, in)`.
        gram: Shape `(in, in)`.
        tried: How many of the lowest of either side are looked at, or of how many runs the best swap. At most half
            as many swaps are made, and one if that is less.
        least: What the change by each swap has to stay below, shape `(rows, 1)`.
        in_runs: What `joint_in_runs` gives, if swaps are to stay within runs.

    Returns:
        The columns to restore, the columns to prune, and whether these swaps are made, shape `(rows, swaps)` each.
    """
    if in_runs is None:
        (to_restore, back), (to_prune, out) = (lowest(change, tried) for change in (restore, remove))
    else:
        back, out = _best_of_runs(in_runs, restore, remove, tried)
        to_restore, to_prune = restore.gather(1, back), remove.gather(1, out)
    of_back, of_out = weight.gather(1, back), weight.gather(1, out)
    joint = _joint(of_back, of_out, gram, back, out)
    made = torch.ones_like(least, dtype=torch.bool)
    found = []
    for _ in range(max(1, tried // _LOOKED_AT)):
        change, i, j = _best_pair(to_restore, to_prune, joint, pairs_only=in_runs is not None)
        made = made & (change < least)
        restored, removed = back.gather(1, i), out.gather(1, j)
        found.append((restored, removed, made))
        if _is_over(made):
            break
        # With weight b restored and weight o pruned, restoring weight j changes the error by 2 w_j w_b G_jb −
        # 2 w_j w_o G_jo more than before, and pruning it by as much less.
        with_restored = _joint(of_back.gather(1, i), of_back, gram, restored, back).squeeze(1)
        with_removed = _joint(of_out.gather(1, j), of_out, gram, removed, out).squeeze(1)
        to_restore = to_restore + (with_restored - joint.take_along_dim(j[:, None], 2).squeeze(2))
        to_prune = to_prune + (with_removed - joint.take_along_dim(i[..., None], 1).squeeze(1))
        to_restore.scatter_(1, i, torch.inf)
        to_prune.scatter_(1, j, torch.inf)
    return tuple(torch.cat(each, 1) for each in zip(*found, strict=True))


def joint_in_runs(weight: Tensor, gram: Tensor, run: int) -> Tensor:
    """`2 w_j w_k G_jk` for all `j` and `k` of each run of consecutive columns, shape `(rows, runs, run, run)`."""
    columns = torch.arange(weight.shape[1], device=weight.device).view(-1, run)
    parts = weight.view(len(weight), len(columns), run)
    return 2 * (parts[..., :, None] * parts[..., None, :] * gram[columns[:, :, None], columns[:, None]])


def best_swap_in_runs(joint: Tensor, restore: Tensor, remove: Tensor) -> tuple[Tensor, ...]:
    """As `best_swap`, but among all swaps within the runs of `joint_in_runs`."""
    run = joint.shape[-1]
    changes = _changes_in_runs(joint, restore, remove).flatten(1)
    position = _argmin(changes)
    change, position = changes.gather(1, position).squeeze(1), position.squeeze(1)
    start = position // run**2 * run
    return change, start + position % run**2 // run, start + position % run


def lowest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` lowest values of each row, lowest first, and their columns: as `topk`, much sooner on a CPU.

    Of the lowest values of several parts of a row, the `count`-th lowest is a bound that no more than a few other
    values are below. They are found in one pass, and sorted.
    """
    rows, columns = values.shape
    parts = min(4 * count, columns)
    if not rows or not _is_for_numpy(values):
        return values.topk(count, dim=1, largest=False)
    of_parts = values[:, : columns // parts * parts].reshape(rows, -1, parts).amin(1).numpy()
    bound = np.partition(of_parts, count - 1, axis=1)[:, count - 1, None]
    all_values = values.numpy()
    places = np.flatnonzero(all_values <= bound)
    row = places // columns
    many = np.bincount(row, minlength=rows)
    width = int(many.max())
    if width > parts or many.min() < count:  # many are equal, or some are not numbers
        return values.topk(count, dim=1, largest=False)
    to = row * width + np.arange(len(places)) - (many.cumsum() - many)[row]
    found, at = np.full(rows * width, np.inf, all_values.dtype), np.zeros(rows * width, np.int64)
    found[to], at[to] = all_values.ravel()[places], places - row * columns
    order = found.reshape(rows, width).argsort(1)[:, :count] + width * np.arange(rows)[:, None]
    return torch.from_numpy(found[order]), torch.from_numpy(at[order])


def _best_pair(to_restore: Tensor, to_prune: Tensor, joint: Tensor, *, pairs_only: bool) -> tuple[Tensor, ...]:
    """The least change by a swap of every row, and the places of its weights among those to restore and to prune.

    Args:
        to_restore: Changes by weights to restore, shape `(rows, tried)`.
        to_prune: Changes by weights to prune, shape `(rows, tried)`.
        joint: What both together change less, shape `(rows, tried, tried)`.
        pairs_only: Whether each is only swapped for the one in its place.

    Returns:
        Three tensors of shape `(rows, 1)`.
    """
    if pairs_only:
        changes = (to_restore + to_prune).sub_(joint.diagonal(dim1=1, dim2=2))
        position = _argmin(changes)
        return changes.gather(1, position), position, position
    changes = (to_restore[:, :, None] + to_prune[:, None]).sub_(joint).flatten(1)
    position, tried = _argmin(changes), to_prune.shape[1]
    return changes.gather(1, position), position // tried, position % tried


def _is_over(made: Tensor) -> bool:
    """Whether no row goes on; not asked of a GPU, which would have to be waited for."""
    return made.device.type == "cpu" and not made.any()


def _best_of_runs(joint: Tensor, restore: Tensor, remove: Tensor, tried: int) -> tuple[Tensor, Tensor]:
    """Columns to restore and to prune, shape `(rows, tried)`, by the best swap of the runs in which it is best."""
    run = joint.shape[-1]
    changes = _changes_in_runs(joint, restore, remove).flatten(2)
    _, runs = lowest(changes.amin(2), tried)
    position = _argmin(changes.take_along_dim(runs[..., None], 1).flatten(0, 1)).view(runs.shape)
    return runs * run + position // run, runs * run + position % run


def _changes_in_runs(joint: Tensor, restore: Tensor, remove: Tensor) -> Tensor:
    """What every swap within a run changes, shape `(rows, runs, run, run)`."""
    give, take = (x.view(joint.shape[:3]) for x in (restore, remove))
    return (give[..., :, None] + take[..., None, :]).sub_(joint)


def _joint(one: Tensor, other: Tensor, gram: Tensor, back: Tensor, out: Tensor) -> Tensor:
    """`2 w_j w_k G_jk` for all weights of one kind with those of the other, of each row, shape `(rows, one, other)`."""
    pairs = 2 * (one[:, :, None] * other[:, None])
    return pairs.mul_(_entries(gram, back, out))


def _entries(gram: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`G_jk` for all `j` and `k` of each row of indices, shape `(len(rows), j, k)`."""
    kind = torch.int32 if gram.numel() < 2**31 else torch.int64
    places = rows.to(kind)[:, :, None] * gram.shape[1] + columns.to(kind)[:, None]
    return gram.reshape(-1).index_select(0, places.flatten()).view(places.shape)


def _argmin(values: Tensor) -> Tensor:
    """Column of the first lowest value of every row, shape `(rows, 1)`."""
    if _is_for_numpy(values):
        return torch.from_numpy(values.numpy().argmin(1))[:, None]
    return values.argmin(1, keepdim=True)


def _is_for_numpy(values: Tensor) -> bool:
    """Whether numpy does the same with vector instructions."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
