"""Slow reference for `optimum_mwanda.pruning.reconstruction`: textbook formulas, row by row, in float64."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def layer_error(weight: Array, update: Array, activations: Array) -> list[float]:
    """Squared difference of the outputs, per output row."""
    difference = activations @ (weight - update).T
    return [float(sum(value**2 for value in column)) for column in difference.T]


def exact_errors(weight: Array, update: Array, gram: Array) -> NDArray[np.object_]:
    """`(w − w') G (w − w')ᵀ` per output row in rational numbers: nothing is rounded."""
    weight, update, gram = (np.vectorize(Fraction, otypes=[object])(values) for values in (weight, update, gram))
    difference = weight - update
    return ((difference @ gram) * difference).sum(1)


def ridge(activations: Array, damping: float) -> float:
    """The damping in the unit of the Gram matrix: a share of the (lower) median of the active channels."""
    squares = sorted(float(column @ column) for column in activations.T if column.any())
    return damping * squares[(len(squares) - 1) // 2]


def least_squares(
    weight: Array, pruned: NDArray[np.bool_], activations: Array, damping: float, outputs: Array
) -> Array:
    """Per row, the surviving weights that fit the wanted outputs, damping written as extra observations."""
    update = np.zeros_like(weight)
    pull = np.sqrt(ridge(activations, damping))
    for i, row in enumerate(weight):
        kept = np.flatnonzero(~pruned[i])
        system = np.vstack([activations[:, kept], pull * np.eye(len(kept))])
        wanted = np.concatenate([outputs[:, i], pull * row[kept]])
        update[i, kept] = np.linalg.lstsq(system, wanted, rcond=None)[0]
    return update


def remove_one(row: Array, column: int, gram: Array) -> Array:
    """The surgeon's step: `w − w_q / [G⁻¹]_qq · [G⁻¹]_q`."""
    inverse = np.linalg.inv(gram)
    return row - row[column] / inverse[column, column] * inverse[column]


def sparsegpt(
    weight: Array, gram: Array, counts: dict[int, tuple[int, int]], per_row: bool
) -> tuple[Array, NDArray[np.bool_]]:
    """One surgeon's step per pruned weight from left to right; columns that were passed are fixed.

    `counts` maps a column to (columns to choose among from there on, weights to prune among them, per row or in all).
    """
    update, pruned = weight.copy(), np.zeros(weight.shape, dtype=bool)
    rows, width = weight.shape
    inverses = [np.linalg.inv(gram[j:, j:]) for j in range(width)]
    for j in range(width):
        if j in counts:
            span, count = counts[j]
            scores = {(i, c): update[i, c] ** 2 / inverses[c][0, 0] for i in range(rows) for c in range(j, j + span)}
            groups = [[key for key in scores if key[0] == i] for i in range(rows)] if per_row else [list(scores)]
            for group in groups:
                for key in sorted(group, key=lambda key: (scores[key], key))[:count]:
                    pruned[key] = True
        for i in range(rows):
            if pruned[i, j]:
                update[i, j:] = remove_one(update[i, j:], 0, gram[j:, j:])
                update[i, j] = 0
    return update, pruned


def admm(weight: Array, gram: Array, target: Array, count: int, iterations: int) -> tuple[Array, NDArray[np.bool_]]:
    """ALPS as its paper writes it, one linear system per step, on channels scaled to a unit diagonal."""
    scale = np.sqrt(np.diag(gram))
    unit = gram / np.outer(scale, scale)
    aim = target / scale

    def project(values: Array) -> Array:
        kept = np.argsort(np.abs(values).ravel(), kind="stable")[count:]
        sparse = np.zeros(values.size)
        sparse[kept] = values.ravel()[kept]
        return sparse.reshape(values.shape)

    sparse = project(weight * scale)
    dual = np.zeros_like(sparse)
    support, rho = sparse != 0, 0.1
    for step in range(1, iterations + 1):
        system = unit + rho * np.eye(len(unit))
        fitted = np.linalg.solve(system, (aim - dual + rho * sparse).T).T
        sparse = project(fitted + dual / rho)
        dual = dual + rho * (fitted - sparse)
        if step % 3 == 0:
            changed = int(((sparse != 0) & ~support).sum())
            if changed == 0:
                break
            share = changed / support.sum()
            rho *= 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1
            support = sparse != 0
    return sparse / scale, sparse == 0
