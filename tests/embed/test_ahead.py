"""What reads an input ahead of those who use it."""

import threading
import time
from collections.abc import Iterator

import pytest

from clipcls.embed.read_ahead import CHUNK, Ahead


def input_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "input"]


def ends(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(60)
    return not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_ahead_gives_all_items_in_order(count: int) -> None:
    with Ahead(range(count)) as chunks:
        seen = list(chunks)
    assert [item for chunk in seen for item in chunk] == list(range(count))
    assert max(map(len, seen)) <= CHUNK
    assert chunks.stalled


def test_ahead_gives_full_chunks_while_the_input_keeps_up() -> None:
    with Ahead(range(3 * CHUNK)) as chunks:
        for chunk in chunks:
            # with the last item, the end may be known or not
            assert chunks.stalled == (len(chunk) < CHUNK) or chunk[-1] == 3 * CHUNK - 1


def test_ahead_hands_over_what_is_there_once_the_input_stalls() -> None:
    go_on = threading.Event()

    def stalling() -> Iterator[int]:
        yield from (0, 1)
        go_on.wait(60)
        yield 2

    with Ahead(stalling()) as chunks:
        iterator = iter(chunks)
        first = next(iterator)
        while len(first) < 2:
            first = first + next(iterator)
        assert first == [0, 1] and chunks.stalled
        assert next(iterator) == [] and chunks.stalled
        go_on.set()
        assert [item for chunk in iterator for item in chunk] == [2]


def test_ahead_reads_no_more_than_two_chunks_ahead() -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    with Ahead(endless()) as chunks:
        iterator = iter(chunks)
        next(iterator)
        for _ in range(50):
            time.sleep(0.01)
            if pulled > 3 * CHUNK:
                break
        assert 2 * CHUNK <= pulled <= 3 * CHUNK + 1


def test_ahead_raises_after_the_items_before_it() -> None:
    def breaking() -> Iterator[int]:
        yield from range(CHUNK + 5)
        raise ValueError("the list breaks off")

    seen: list[int] = []
    with Ahead(breaking()) as chunks, pytest.raises(ValueError, match="breaks off"):
        for chunk in chunks:
            seen += chunk
    assert seen == list(range(CHUNK + 5))


def test_ahead_raises_what_begins_with_an_error() -> None:
    def broken() -> Iterator[int]:
        raise KeyError("x")
        yield 0

    with Ahead(broken()) as chunks, pytest.raises(KeyError):
        list(chunks)


def test_ahead_ends_its_thread_at_the_end_and_when_left_early() -> None:
    before = set(input_threads())
    with Ahead(range(10)) as chunks:
        list(chunks)
    with Ahead(iter(int, 1)) as endless:
        next(iter(endless))
        running = [thread for thread in input_threads() if thread not in before]
        assert running
    assert ends(running)


def test_ahead_ends_its_thread_when_its_user_fails() -> None:
    before = set(input_threads())
    with pytest.raises(RuntimeError, match="user"), Ahead(iter(int, 1)):
        running = [thread for thread in input_threads() if thread not in before]
        raise RuntimeError("user")
    assert ends(running)


def heavy(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("clipcls.embed.read_ahead._CHUNK_BYTES", limit)


@pytest.mark.parametrize(("weight", "most"), [(1, 100), (10, 10), (30, 4), (99, 2)])
def test_ahead_gives_shorter_lists_of_heavy_items(weight: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy(monkeypatch, 100)
    with Ahead(range(503), weigh=lambda _: weight) as chunks:
        seen = list(chunks)
    assert [item for chunk in seen for item in chunk] == list(range(503))
    assert max(map(len, seen)) == most


@pytest.mark.parametrize("weight", [100, 101, 200, 100_000])
def test_ahead_gives_items_over_the_limit_one_by_one(weight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy(monkeypatch, 100)
    with Ahead(range(50), weigh=lambda _: weight) as chunks:
        seen = list(chunks)
    assert [chunk for chunk in seen if chunk] == [[item] for item in range(50)]


def test_ahead_gives_lists_that_only_their_last_item_takes_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy(monkeypatch, 100)
    weights = [1, 500, 60, 60, 60, 2, 99, 300, 300, 1, *[0] * 40, 98, 1, 1, 700]
    with Ahead(weights, weigh=lambda weight: weight) as chunks:
        seen = list(chunks)
    assert [weight for chunk in seen for weight in chunk] == weights
    assert all(sum(chunk[:-1]) < 100 for chunk in seen)


def test_ahead_gives_full_lists_again_after_heavy_items(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy(monkeypatch, 100)
    with Ahead(range(20 + 3 * CHUNK), weigh=lambda item: 150 if item < 20 else 0) as chunks:
        lengths = [len(chunk) for chunk in chunks]
    assert lengths[:20] == [1] * 20
    assert lengths[20:23] == [CHUNK] * 3


def test_ahead_reads_no_more_than_two_lists_of_heavy_items_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy(monkeypatch, 100)
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    with Ahead(endless(), weigh=lambda _: 25) as chunks:
        taken = len(next(iter(chunks)))
        assert taken == 4
        for _ in range(300):
            time.sleep(0.01)
            if pulled > taken + 8:
                break
        assert pulled == taken + 8 + 1  # the last one waits for room


def test_ahead_hands_over_heavy_items_before_a_stall_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy(monkeypatch, 100)
    go_on = threading.Event()

    def stalling() -> Iterator[int]:
        yield from (0, 1, 2)
        go_on.wait(60)
        yield 3

    with Ahead(stalling(), weigh=lambda _: 60) as chunks:
        iterator = iter(chunks)
        assert next(iterator) == [0, 1] and not chunks.stalled
        assert next(iterator) == [2] and chunks.stalled
        go_on.set()
        assert [item for chunk in iterator for item in chunk] == [3]
