"""Who does what."""

from collections.abc import Sequence


def even_part(count: int, rank: int, size: int) -> range:
    """The part of a row of equal things that a process gets: neighbours, at most one more than another process gets.

    The first processes get something, however few things there are.
    """
    least, more = divmod(count, size)
    start = rank * least + min(rank, more)
    return range(start, start + least + (rank < more))


def owners(costs: Sequence[float], size: int) -> list[int]:
    """Deals things of different costs: the dearest first, each to the process that has least to do.

    Returns:
        The process of each thing.
    """
    loads = [0.0] * size
    found = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        rank = min(range(size), key=lambda rank: (loads[rank], rank))
        found[number] = rank
        loads[rank] += costs[number]
    return found
