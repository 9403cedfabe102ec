"""The best swaps of a pruned and a kept weight, row by row."""

import numpy as np
import torch
from torch import Tensor


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
    changes = (give[:, :, None] + take[:, None]).sub_(joint).flatten(1)
    position = _argmin(changes)
    return tuple(
        found.gather(1, at).squeeze(1)
        for found, at in ((changes, position), (back, position // tried), (out, position % tried))
    )


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
        tried: How many of the lowest of either side are looked at, or of how many runs the best swap. At most a
            quarter of as many swaps are made.
        least: What the change by each swap has to stay below, shape `(rows, 1)`.
        in_runs: What `joint_in_runs` gives, if swaps are to stay within runs.

    Returns:
        The columns to restore, the columns to prune, and whether these swaps are made, shape `(rows, swaps)` each.
    """
    if in_runs is None:
        (give, back), (take, out) = (lowest(change, tried) for change in (restore, remove))
    else:
        back, out = _best_of_runs(in_runs, restore, remove, tried)
        give, take = restore.gather(1, back), remove.gather(1, out)
    of_back, of_out = weight.gather(1, back), weight.gather(1, out)
    joint = _joint(of_back, of_out, gram, back, out)
    made = torch.ones_like(least, dtype=torch.bool)
    found = []
    for _ in range(max(1, tried // 4)):
        if in_runs is None:
            changes = (give[:, :, None] + take[:, None]).sub_(joint).flatten(1)
            position = _argmin(changes)
            i, j = position // tried, position % tried
        else:
            changes = (give + take).sub_(joint.diagonal(dim1=1, dim2=2))
            position = i = j = _argmin(changes)
        made = made & (changes.gather(1, position) < least)
        restored, removed = back.gather(1, i), out.gather(1, j)
        found.append((restored, removed, made))
        if made.device.type == "cpu" and not made.any():
            break
        # The error has moved, and with it what each of the others would change.
        also_back = _joint(of_back.gather(1, i), of_back, gram, restored, back).squeeze(1)
        also_out = _joint(of_out.gather(1, j), of_out, gram, removed, out).squeeze(1)
        give = give + (also_back - joint.take_along_dim(j[:, None], 2).squeeze(2))
        take = take + (also_out - joint.take_along_dim(i[:, None], 1).squeeze(1))
        give.scatter_(1, i, torch.inf)
        take.scatter_(1, j, torch.inf)
    return tuple(torch.cat(each, 1) for each in zip(*found, strict=True))


def joint_in_runs(weight: Tensor, gram: Tensor, run: int) -> Tensor:
    """`2 w_j w_k G_jk` for all `j` and `k` of each run of consecutive columns, shape `(rows, runs, run, run)`."""
    columns = torch.arange(weight.shape[1], device=weight.device).view(-1, run)
    parts = weight.view(len(weight), -1, run)
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


def _best_of_runs(joint: Tensor, restore: Tensor, remove: Tensor, tried: int) -> tuple[Tensor, Tensor]:
    """Columns to restore and to prune, shape `(rows, tried)`, by the best swap of the runs in which it is best."""
    run = joint.shape[-1]
    changes = _changes_in_runs(joint, restore, remove).flatten(2)
    _, runs = lowest(changes.amin(2), tried)
    position = _argmin(changes.take_along_dim(runs[..., None], 1).flatten(0, 1)).view(runs.shape)
    return runs * run + position // run, runs * run + position % run


def _changes_in_runs(joint: Tensor, restore: Tensor, remove: Tensor) -> Tensor:
    """What every swap within a run changes, shape `(rows, runs, run, run)`."""
    give, take = (x.view(len(x), -1, joint.shape[-1]) for x in (restore, remove))
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
