"""A thread that goes ahead: it is found again behind every end."""

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import wait
from contextlib import closing

import pytest

from optimum_mwanda.data.ahead import ahead


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("mwanda-text")] == []


class Numbers:
    """Gives numbers, and tells when the last is there and when it was left."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.made, self.left = threading.Event(), threading.Event()
        self.threads: list[str] = []
        self._count, self._error = count, error

    def __iter__(self) -> Generator[int | None, None, None]:
        try:
            for number in range(self._count):
                self.threads.append(threading.current_thread().name)
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.left.set()


def test_all_comes_in_its_order_and_from_one_other_thread_after_the_first() -> None:
    numbers = Numbers(100)
    assert list(ahead(iter(numbers))) == list(range(100))
    first, *others = numbers.threads
    assert first == threading.current_thread().name
    assert len({*others}) == 1
    assert first not in others


def test_it_goes_on_to_its_end_while_the_first_item_is_used() -> None:
    numbers = Numbers(100)
    with closing(ahead(iter(numbers))) as found:
        assert next(found) == 0
        assert numbers.left.wait(60)
        assert list(found) == list(range(1, 100))


def test_an_error_is_raised_before_items_that_wait() -> None:
    taken = threading.Event()

    def numbers() -> Generator[int | None, None, None]:
        yield 0
        assert taken.wait(60)
        yield 1
        raise ValueError("no more")

    found = ahead(numbers())
    assert next(found) == 0
    making = found.gi_frame.f_locals["making"]
    taken.set()
    wait([making], 60)
    with pytest.raises(ValueError, match="no more"):
        next(found)


def test_an_error_before_the_first_item_is_raised() -> None:
    with pytest.raises(ValueError, match="none"):
        list(ahead(iter(Numbers(0, ValueError("none")))))


def test_the_end_of_its_user_ends_it_at_the_next_place() -> None:
    began, places, left = threading.Event(), [], []

    def without_end() -> Generator[int | None, None, None]:
        try:
            yield 0
            while True:
                places.append(1)
                began.set()
                yield None
        finally:
            left.append(threading.current_thread().name)

    with closing(ahead(without_end())) as found:
        assert next(found) == 0
        assert began.wait(60)
    count = len(places)
    assert len(left) == 1
    assert left[0].startswith("mwanda-text")
    assert len(places) == count


def test_what_is_never_asked_for_is_never_begun() -> None:
    numbers = Numbers(3)
    ahead(iter(numbers)).close()
    assert not numbers.threads
