"""Work done ahead: order, errors, ends, and what is said while an item is late."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mlprod.parallel.ahead import Ahead

SOON_S = 10.0  # a test that waits longer has failed


class Source:
    """Numbers from 0 on, each of which may take a while, or forever; it counts what was drawn and when it was closed."""

    def __init__(self, count: int, takes: Callable[[int], float] = lambda i: 0.0) -> None:
        self._count, self._takes = count, takes
        self.drawn, self.closed = 0, threading.Event()
        self.after_close = 0

    def __next__(self) -> int:
        self.after_close += self.closed.is_set()
        if self.drawn == self._count:
            raise StopIteration
        i, self.drawn = self.drawn, self.drawn + 1
        if self.closed.wait(self._takes(i)):
            raise StopIteration
        return i

    def close(self) -> None:
        self.closed.set()


class Deaf(Source):
    """Its `next` does not hear `close`: a read that no one can end."""

    def __init__(self) -> None:
        super().__init__(1_000)
        self.inside, self.go = threading.Event(), threading.Event()

    def __next__(self) -> int:
        self.inside.set()
        assert self.go.wait(SOON_S)
        return super().__next__()


Make = Callable[..., Ahead[int, int]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes an `Ahead` that doubles a source's numbers; none is left open."""
    made = list[Ahead[int, int]]()

    def _make(
        source: Source,
        work: Callable[[int], int] = lambda i: 2 * i,
        depth: int = 2,
        waiting: Callable[[float], None] = lambda waited: None,
        every_s: float = 100.0,
    ) -> Ahead[int, int]:
        made.append(Ahead(source, work, depth, waiting, every_s))
        return made[-1]

    yield _make
    for ahead in made:
        ahead.close()


def until(true: Callable[[], bool]) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def at_rest(count: Callable[[], int]) -> int:
    """Returns a count that does not change any more."""
    while True:
        before = count()
        time.sleep(0.05)
        if count() == before:
            return before


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_items_come_in_order_and_end(depth: int, make: Make) -> None:
    """However long each takes; after the last one comes none, as often as asked."""
    ahead = make(Source(30, takes=lambda i: (i * 7 % 5) / 1000), lambda i: time.sleep((i * 3 % 4) / 1000) or 2 * i, depth)
    assert list(ahead) == [2 * i for i in range(30)]
    assert next(ahead, None) is None
    assert ahead.draw(unless=lambda: False) is None


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_bounds_how_far_ahead_it_works(depth: int, make: Make) -> None:
    """Nobody asks: `depth` items; then one more for each that is taken."""
    source, done = Source(100), list[int]()
    ahead = make(source, lambda i: done.append(i) or i, depth)
    until(lambda: len(done) == depth)
    for taken in range(4):
        assert at_rest(lambda: len(done)) == source.drawn == depth + taken
        assert next(ahead) == taken


def test_an_item_made_ahead_is_given_without_a_wait(make: Make) -> None:
    """That is what it is for; `unless` is only asked while an item is late."""
    source = Source(3)
    ahead = make(source)
    until(lambda: ahead._ready.qsize() == 2)
    assert [ahead.draw(unless=lambda: True) for _ in range(2)] == [0, 2]


@pytest.mark.parametrize("where", ["source", "work"])
def test_an_error_comes_at_its_turn_and_is_the_last(where: str, make: Make) -> None:
    """As it was raised, after the items before it; the same again for whoever asks again; nothing behind it is drawn."""
    error = ValueError("item 3 is bad")

    def fails(i: int) -> int:
        if i == 3:
            raise error
        return i

    source = Source(100, takes=(lambda i: 0.0 * fails(i)) if where == "source" else lambda i: 0.0)
    ahead = make(source, fails if where == "work" else lambda i: i, depth=50)
    until(lambda: source.drawn == 4)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    for _ in range(3):
        with pytest.raises(ValueError, match="item 3") as caught:
            next(ahead)
        assert caught.value is error
    assert at_rest(lambda: source.drawn) == 4
    until(lambda: not ahead._thread.is_alive())


def test_a_late_item_is_told_again_and_again(make: Make) -> None:
    """With the seconds waited so far, every `every_s` of them; an item that is there is told by nobody."""
    deaf, told = Deaf(), list[float]()

    def waiting(waited: float) -> None:
        told.append(waited)
        if len(told) == 3:
            deaf.go.set()

    ahead = make(deaf, waiting=waiting, every_s=0.5)
    assert next(ahead) == 0, "it is a wait, not an end"
    assert len(told) == 3
    assert all(waited >= least for waited, least in zip(told, (0.5, 1.0, 1.5), strict=True))
    assert told[-1] < 4
    for i in range(1, 4):
        until(lambda: ahead._ready.qsize() > 0)
        assert next(ahead) == 2 * i
    assert len(told) == 3


def test_a_wait_ends_when_asked_to(make: Make) -> None:
    """`draw` gives None soon after `unless` becomes true while an item is late; the item is not lost."""
    deaf = Deaf()
    ahead = make(deaf)
    began = time.monotonic()
    assert ahead.draw(unless=lambda: time.monotonic() - began > 0.4) is None
    assert 0.4 < time.monotonic() - began < 2.0
    deaf.go.set()
    assert ahead.draw(unless=lambda: False) == 0


def test_closing_returns_at_once_while_the_source_hangs(make: Make) -> None:
    """Also when nothing can end the source's `next`; the thread ends after that, and draws no more."""
    deaf = Deaf()
    ahead = make(deaf)
    assert deaf.inside.wait(SOON_S)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 2
    assert deaf.closed.is_set()
    assert ahead._thread.is_alive()
    deaf.go.set()
    until(lambda: not ahead._thread.is_alive())
    assert (deaf.drawn, deaf.after_close) == (1, 1), "the one that was under way"
    assert ahead.draw(unless=lambda: False) is None


def test_closing_ends_the_wait_of_a_source_that_hears_it(make: Make) -> None:
    """The thread is gone when `close` returns."""
    source = Source(10, takes=lambda i: SOON_S)
    ahead = make(source)
    until(lambda: source.drawn == 1)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 0.5
    assert not ahead._thread.is_alive()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_nothing_is_drawn_after_closing(taken: int, make: Make) -> None:
    """Full or not, whether someone took items or not; closing again is fine."""
    source = Source(1_000)
    with make(source, depth=3) as ahead:
        assert [next(ahead) for _ in range(taken)] == [2 * i for i in range(taken)]
        until(lambda: source.drawn == 3 + taken)
    assert not ahead._thread.is_alive()
    ahead.close()
    assert at_rest(lambda: source.drawn) == 3 + taken
    assert source.after_close == 0


def test_an_error_in_the_body_closes_it(make: Make) -> None:
    """The thread does not outlive the loop that it works for."""
    source = Source(1_000)

    def body() -> None:
        with make(source) as ahead:
            raise KeyError(next(ahead))

    with pytest.raises(KeyError):
        body()
    assert source.closed.is_set()
    assert source.after_close == 0
