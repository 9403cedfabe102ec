"""The best swap of a pruned and a kept weight, row by row."""

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
    joint = 2 * (weight.gather(1, back)[:, :, None] * weight.gather(1, out)[:, None])
    joint *= _entries(gram, back, out)
    changes = (give[:, :, None] + take[:, None]).sub_(joint).flatten(1)
    position = _argmin(changes)
    return tuple(
        found.gather(1, at).squeeze(1)
        for found, at in ((changes, position), (back, position // tried), (out, position % tried))
    )


def joint_in_runs(weight: Tensor, gram: Tensor, run: int) -> Tensor:
    """`2 w_j w_k G_jk` for all `j` and `k` of each run of consecutive columns, shape `(rows, runs, run, run)`."""
    columns = torch.arange(weight.shape[1], device=weight.device).view(-1, run)
    parts = weight.view(len(weight), -1, run)
    return 2 * (parts[..., :, None] * parts[..., None, :] * gram[columns[:, :, None], columns[:, None]])


def best_swap_in_runs(joint: Tensor, restore: Tensor, remove: Tensor) -> tuple[Tensor, ...]:
    """As `best_swap`, but among all swaps within the runs of `joint_in_runs`."""
    run = joint.shape[-1]
    give, take = (x.view(len(x), -1, run) for x in (restore, remove))
    changes = (give[..., :, None] + take[..., None, :]).sub_(joint).flatten(1)
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
