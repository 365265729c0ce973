"""One query for everything that is watched."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

import pytest

from enterprise_gateway.core.errors import HostUnreachableError
from enterprise_gateway.drivers.watch import StateWatch
from tests.conftest import ExpectLog
from tests.support.waiting import wait_for


class Table:
    """States that a test sets, and what was asked."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.asked: list[AbstractSet[int]] = []
        self.failing = False
        self.broken = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def query(self, keys: AbstractSet[int]) -> dict[int, str]:
        states = dict(self.states)
        self.asked.append(keys)
        self.may_answer.wait(20)
        if self.failing:
            raise HostUnreachableError("away")
        if self.broken:
            raise KeyError("a defect of the query")
        return states


@pytest.fixture
def table() -> Table:
    """Return states for a watch."""
    return Table()


@pytest.fixture
def watch(table: Table) -> Iterator[StateWatch[int, str]]:
    """Return a quick watch."""
    watch = StateWatch("test", table.query, interval=0.05, eager_interval=0.01)
    yield watch
    watch.close()
    wait_for(lambda: not any(thread.name == "eg-watch-test" for thread in threading.enumerate()))


def test_a_thousand_are_asked_for_in_one_query(table: Table, watch: StateWatch[int, str]) -> None:
    """The cost does not depend on how many are watched."""
    table.states = dict.fromkeys(range(1000), "up")
    seen: list[str | None] = []
    for key in range(1000):
        watch.register(key, seen.append)
    wait_for(lambda: len(seen) == 1000)
    count = len(table.asked)
    time.sleep(0.5)

    assert table.asked[-1] == set(range(1000))
    assert len(table.asked) - count <= 11
    assert set(seen) == {"up"}


def test_only_changes_are_reported(table: Table, watch: StateWatch[int, str]) -> None:
    """Each state is told once; one that is gone is None; who has cancelled is told nothing."""
    seen: list[str | None] = []
    unheard: list[str | None] = []
    table.states = {1: "pending", 2: "pending"}
    watch.register(1, seen.append)
    cancelled = watch.register(2, unheard.append)
    wait_for(lambda: seen == ["pending"] == unheard)
    cancelled.cancel()
    table.states = {1: "running", 2: "running"}
    wait_for(lambda: len(seen) == 2)
    table.states = {}
    wait_for(lambda: len(seen) == 3)

    assert seen == ["pending", "running", None]
    assert unheard == ["pending"]


def test_a_failing_query_says_nothing(table: Table, watch: StateWatch[int, str]) -> None:
    """While the states cannot be had nobody is taken for gone; afterwards it goes on."""
    seen: list[str | None] = []
    table.states = {1: "running"}
    watch.register(1, seen.append)
    wait_for(lambda: seen == ["running"])
    table.failing = True
    count = len(table.asked)
    wait_for(lambda: len(table.asked) > count + 2)
    assert seen == ["running"]

    table.failing, table.states = False, {}
    wait_for(lambda: seen == ["running", None])


def test_a_query_with_a_defect_is_asked_again(table: Table, watch: StateWatch[int, str], expect_log: ExpectLog) -> None:
    """It is told in the log, once as long as it stays the same; who registers later hears everything."""
    seen: list[str | None] = []
    table.states, table.broken = {1: "running", 2: "running"}, True
    with expect_log("on test cannot be queried") as records:
        watch.register(1, seen.append)
        wait_for(lambda: len(table.asked) > 3)
    assert len(records) == 1
    table.broken = False
    wait_for(lambda: seen == ["running"])
    watch.register(2, seen.append)
    wait_for(lambda: seen == ["running", "running"])


def test_a_failing_listener_does_not_keep_others_from_hearing(
    table: Table, watch: StateWatch[int, str], expect_log: ExpectLog
) -> None:
    """The error is logged; the others are told, and so is the one that failed when something changes again."""
    seen: list[str | None] = []
    heard: list[str | None] = []

    def fail(state: str | None) -> None:
        heard.append(state)
        raise ValueError("not what I expected")

    table.states = dict.fromkeys(range(9), "pending")
    with expect_log("The change of state of 4 on test could not be handled") as records:
        for key in range(9):
            watch.register(key, fail if key == 4 else seen.append)
        wait_for(lambda: len(seen) == 8)
        table.states = dict.fromkeys(range(9), "running")
        wait_for(lambda: len(seen) == 16 and len(heard) == 2)
    assert len(records) == 2
    assert heard == ["pending", "running"]


def test_eager_ones_are_asked_for_more_often(table: Table) -> None:
    """What is about to change is seen soon, without waiting for the slow rhythm; nobody watched, nothing asked."""
    watch = StateWatch("test", table.query, interval=3600, eager_interval=0.01)
    try:
        eager = watch.register(1, lambda _: None, eager=True)
        wait_for(lambda: len(table.asked) > 3)
        eager.cancel()
        watch.register(2, lambda _: None)
        count = len(table.asked)
        time.sleep(0.1)
        assert len(table.asked) - count <= 1
    finally:
        watch.close()
    wait_for(lambda: not any(thread.name == "eg-watch-test" for thread in threading.enumerate()))


def test_what_was_never_there_is_not_gone(table: Table, watch: StateWatch[int, str]) -> None:
    """A kernel that is not listed yet is not taken for dead; once it was there, it is."""
    seen: list[str | None] = []
    watch.register(1, seen.append)
    wait_for(lambda: len(table.asked) > 3)
    assert (seen, watch.seen(1), watch.get(1)) == ([], False, None)

    table.states = {1: "running"}
    wait_for(lambda: seen == ["running"])
    assert (watch.seen(1), watch.get(1)) == (True, "running")
    table.states = {}
    wait_for(lambda: seen == ["running", None])
    assert (watch.seen(1), watch.get(1)) == (True, None)


def test_what_is_known_to_exist_is_gone_when_it_is_not_found(table: Table, watch: StateWatch[int, str]) -> None:
    """A process whose start was confirmed may end before anybody asks for it."""
    ended: list[str | None] = []
    watch.register(1, ended.append, exists=True)
    wait_for(lambda: ended == [None])
    assert not watch.seen(1)


def test_an_answer_says_nothing_of_who_came_after_the_question(table: Table, watch: StateWatch[int, str]) -> None:
    """A number that is given to a new process during a query does not make the new one end with the old."""
    old: list[str | None] = []
    new: list[str | None] = []
    table.states = {1: "running"}
    watch.register(1, old.append)
    wait_for(lambda: old == ["running"])
    table.may_answer.clear()
    table.states = {}
    count = len(table.asked)
    wait_for(lambda: len(table.asked) > count)
    watch.register(1, new.append, exists=True)
    table.states = {1: "young"}
    table.may_answer.set()
    wait_for(lambda: new == ["running", "young"])
    assert old == ["running", None, "young"]


def test_a_known_state_is_reported_at_once(table: Table) -> None:
    """Who registers for something that is watched already waits for no query; each hears it once."""
    watch = StateWatch("test", table.query, interval=3600, eager_interval=0.01)
    table.states = {1: "running"}
    first: list[str | None] = []
    second: list[str | None] = []
    watch.register(1, first.append, eager=True)
    wait_for(lambda: first == ["running"])
    watch.register(1, second.append)
    assert second == ["running"]
    watch.close()
    wait_for(lambda: not any(thread.name == "eg-watch-test" for thread in threading.enumerate()))


def test_states_that_are_no_longer_watched_are_dropped(table: Table, watch: StateWatch[int, str]) -> None:
    """The table holds what is registered, and a state from before the last cancellation does not come back."""
    seen: list[str | None] = []
    table.states = {1: "running", 2: "running"}
    registration = watch.register(1, seen.append)
    wait_for(lambda: seen == ["running"])
    assert watch.get(2) is None
    registration.cancel()
    assert watch.get(1) is None
    assert not watch.seen(1)


def test_the_age_counts_from_the_last_good_answer(table: Table) -> None:
    """It is infinite before the first, and grows while the query fails; how long that was is the clock's to say."""
    now = [100.0]
    watch = StateWatch("test", table.query, interval=0.01, eager_interval=0.01, clock=lambda: now[0])
    assert watch.age == math.inf
    table.states = {1: "running"}
    watch.register(1, lambda _: None)
    wait_for(lambda: watch.age == 0)
    table.failing = True
    count = len(table.asked)
    wait_for(lambda: len(table.asked) > count + 2)
    now[0] = 160.0
    assert watch.age == 60
    assert watch.get(1) == "running"
    table.failing = False
    wait_for(lambda: watch.age == 0)

    watch.close()
    wait_for(lambda: not any(thread.name == "eg-watch-test" for thread in threading.enumerate()))


def test_many_threads_register_and_cancel(table: Table, watch: StateWatch[int, str]) -> None:
    """Each hears each of its states once and in order, also while others register and cancel."""
    table.states = dict.fromkeys(range(100), "running")
    heard: list[list[str | None]] = []

    def come_and_go(key: int) -> None:
        seen: list[str | None] = []
        registration = watch.register(key, seen.append)
        wait_for(lambda: bool(seen))
        registration.cancel()
        heard.append(seen)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(come_and_go, [key % 100 for key in range(800)]))
    assert heard == [["running"]] * 800


def test_a_listener_may_use_the_watch(table: Table, watch: StateWatch[int, str]) -> None:
    """One that cancels itself, asks, and registers for something else does not wait for itself."""
    seen: list[str | None] = []
    table.states = {1: "running", 2: "pending"}

    def hand_over(state: str | None) -> None:
        seen.append(watch.get(1))
        registration.cancel()
        watch.register(2, seen.append)

    registration = watch.register(1, hand_over)
    wait_for(lambda: seen == ["running", "pending"])
