"""A list and the changes since, for everything that is watched."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from enterprise_gateway.core.errors import HostUnreachableError
from enterprise_gateway.drivers.watch import StateWatch
from tests.conftest import ExpectLog
from tests.support.changesource import QueuedChanges
from tests.support.waiting import wait_for


@pytest.fixture
def cluster() -> QueuedChanges:
    """Return states for a watch."""
    return QueuedChanges()


@pytest.fixture
def watch(cluster: QueuedChanges) -> Iterator[StateWatch[str, str]]:
    """Return a watch that soon looks again."""
    watch: StateWatch[str, str] = StateWatch.following("test", cluster, pause=0.02, longest_pause=0.1)
    yield watch
    watch.close()
    wait_for(lambda: not watching())


def watching() -> bool:
    """Tell whether there is a watch's thread."""
    return any(thread.name == "eg-watch-test" for thread in threading.enumerate())


def follow(cluster: QueuedChanges, watch: StateWatch[str, str]) -> list[str | None]:
    """Return what is heard of one that runs, as soon as changes are waited for."""
    seen: list[str | None] = []
    cluster.states["one"] = "running"
    watch.register("one", seen.append)
    wait_for(lambda: seen == ["running"] and bool(cluster.cursors))
    return seen


def test_it_lists_once_and_is_told_changes(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """Each change is told once, what stays the same is not; the stream goes on from the list's cursor."""
    seen = follow(cluster, watch)
    cluster.happens("one", "running")
    cluster.happens("one", "stopping")
    cluster.happens("one", None)
    wait_for(lambda: len(seen) == 3)

    assert seen == ["running", "stopping", None]
    assert cluster.cursors == [1]
    assert len(cluster.listed) == 1


def test_nothing_is_queried_before_the_first_registration(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """A gateway without kernels on a cluster has no thread and no connection for it."""
    assert (watch.get("one"), watch.seen("one"), watch.age) == (None, False, math.inf)
    assert not watching()
    assert cluster.listed == []


def test_what_was_never_there_is_not_gone(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """Neither the list, nor a change of something else, nor a new list says that a kernel to come is dead."""
    follow(cluster, watch)
    seen: list[str | None] = []
    watch.register("two", seen.append)
    cluster.happens("one", "stopping")
    cluster.breaks()
    wait_for(lambda: len(cluster.cursors) == 2)
    assert seen == []

    cluster.happens("two", "pending")
    wait_for(lambda: seen == ["pending"])


def test_a_new_list_tells_what_was_missed(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """What has changed, come and gone while nobody listened is told after a break, and each thing once."""
    stays = follow(cluster, watch)
    goes: list[str | None] = []
    comes: list[str | None] = []
    cluster.happens("goes", "running")
    watch.register("goes", goes.append)
    watch.register("comes", comes.append)
    wait_for(lambda: goes == ["running"])
    cluster.happens_unseen("goes", None)
    cluster.happens_unseen("comes", "pending")
    cluster.breaks(HostUnreachableError("reset by peer"))
    wait_for(lambda: len(cluster.cursors) == 2)

    assert (stays, goes, comes) == (["running"], ["running", None], ["pending"])
    assert cluster.cursors == [1, 2]


def test_a_late_registration_is_informed_at_once(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """What the list or the stream said of a key that nobody had registered is known to who registers it."""
    cluster.states["listed"] = "running"
    follow(cluster, watch)
    cluster.happens("changed", "pending")
    wait_for(lambda: watch.get("changed") == "pending")
    seen: list[str | None] = []
    watch.register("listed", seen.append)
    watch.register("changed", seen.append)

    assert seen == ["running", "pending"]
    assert watch.seen("listed")


def test_what_is_gone_is_not_kept(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """Ten thousand kernels that came and went leave nothing in the table."""
    follow(cluster, watch)
    for number in range(10_000):
        cluster.happens(f"kernel-{number}", "running")
        cluster.happens(f"kernel-{number}", None)
    cluster.happens("last", "running")
    wait_for(lambda: watch.get("last") == "running")

    assert not any(watch.seen(f"kernel-{number}") for number in range(10_000))


def test_one_known_to_exist_is_looked_for(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """No change is going to tell of one that has ended long ago: the states are listed again, at once."""
    running = follow(cluster, watch)
    ended: list[str | None] = []
    watch.register("ended", ended.append, exists=True)
    wait_for(lambda: ended == [None])
    cluster.happens_unseen("young", "running")  # the stream is late
    young: list[str | None] = []
    watch.register("young", young.append, exists=True)
    wait_for(lambda: young == ["running"])

    assert running == ["running"]
    assert len(cluster.listed) == 3


def test_those_that_come_together_are_looked_for_together(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """A gateway that takes a thousand kernels over does not list a thousand times what it lists once."""
    cluster.states = {f"kernel-{number}": "running" for number in range(0, 1000, 2)}
    seen: dict[str, list[str | None]] = {f"kernel-{number}": [] for number in range(1000)}
    for key, heard in seen.items():
        watch.register(key, heard.append, exists=True)
    wait_for(lambda: all(seen.values()))

    assert all(heard == [cluster.states.get(key)] for key, heard in seen.items())
    assert len(cluster.listed) < 100


def test_the_age_counts_from_the_last_sign_of_life(cluster: QueuedChanges) -> None:
    """The list, a change and a heartbeat say that the states are right; a stream that is broken does not."""
    now = [100.0]
    watch: StateWatch[str, str] = StateWatch.following("test", cluster, pause=0.02, clock=lambda: now[0])
    assert watch.age == math.inf
    follow(cluster, watch)
    assert watch.age == 0
    now[0] = 110
    assert watch.age == 10
    cluster.beats()
    wait_for(lambda: watch.age == 0)
    now[0] = 120
    cluster.happens("one", "stopping")
    wait_for(lambda: watch.age == 0)
    cluster.list_fails, now[0] = True, 150
    cluster.breaks()
    wait_for(lambda: len(cluster.listed) == 3)
    assert watch.age == 30
    assert watch.get("one") == "stopping"
    cluster.list_fails = False
    wait_for(lambda: watch.age == 0)

    watch.close()
    wait_for(lambda: not watching())


def test_it_asks_less_and_less_often_while_nothing_comes(cluster: QueuedChanges) -> None:
    """The pause doubles, up to the longest."""
    watch: StateWatch[str, str] = StateWatch.following("test", cluster, pause=0.05, longest_pause=0.2)
    cluster.list_fails = True
    watch.register("one", lambda _: None)
    wait_for(lambda: len(cluster.listed) == 10)
    watch.close()
    wait_for(lambda: not watching())

    pauses = [later - earlier for earlier, later in pairwise(cluster.listed)]
    for pause, least in zip(pauses, [0.05, 0.1, *[0.2] * 7], strict=True):
        assert pause >= least - 0.001
    assert max(pauses) < 2  # and not the 12 seconds that it would have come to


def test_the_first_thing_that_comes_makes_the_pause_short_again(cluster: QueuedChanges) -> None:
    """A break after hours of silence does not keep anybody waiting for as long as the one before."""
    watch: StateWatch[str, str] = StateWatch.following("test", cluster, pause=0.05, longest_pause=3600)
    cluster.list_fails = True
    watch.register("one", lambda _: None)
    wait_for(lambda: len(cluster.listed) == 5)
    cluster.list_fails = False
    wait_for(lambda: bool(cluster.cursors))
    cluster.happens("one", "running")
    wait_for(lambda: watch.get("one") == "running")
    broke = time.monotonic()
    cluster.breaks()
    wait_for(lambda: len(cluster.cursors) == 2)
    assert cluster.listed[-1] - broke < 1.2  # and not 1.6

    watch.close()
    wait_for(lambda: not watching())


def test_a_stream_with_a_defect_is_opened_again(
    cluster: QueuedChanges, watch: StateWatch[str, str], expect_log: ExpectLog
) -> None:
    """It is told in the log, once until something was received; nobody is taken for gone."""
    seen = follow(cluster, watch)
    with expect_log("on test cannot be queried") as records:
        for count in range(2, 6):
            cluster.breaks(KeyError("a defect of the stream"))
            wait_for(lambda count=count: len(cluster.cursors) == count)  # type: ignore[misc]
    assert len(records) == 1
    cluster.beats()
    with expect_log("on test cannot be queried") as records:
        cluster.breaks(KeyError("a defect of the stream"))
        wait_for(lambda: len(cluster.cursors) == 6)
    assert len(records) == 1
    assert seen == ["running"]
    cluster.happens("one", "stopping")
    wait_for(lambda: seen == ["running", "stopping"])


def test_a_failing_listener_does_not_keep_others_from_hearing(
    cluster: QueuedChanges, watch: StateWatch[str, str], expect_log: ExpectLog
) -> None:
    """The error is logged, the stream goes on, and who registers with a known state gets its registration."""
    seen = follow(cluster, watch)

    def fail(state: str | None) -> None:
        raise ValueError("not what I expected")

    with expect_log("The change of state of one on test could not be handled") as records:
        registration = watch.register("one", fail)
        cluster.happens("one", "stopping")
        cluster.happens("one", None)
        wait_for(lambda: seen == ["running", "stopping", None])
        cluster.happens("two", "running")  # comes after all have been told of the first
        wait_for(lambda: watch.get("two") == "running")
    assert len(records) == 3
    registration.cancel()
    assert len(cluster.listed) == 1


def test_a_slow_listener_is_told_one_thing_at_a_time(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """What comes meanwhile holds nobody else up; afterwards it hears how things stand then."""
    others = follow(cluster, watch)
    listening, may_go_on = threading.Event(), threading.Event()
    heard: list[str | None] = []

    def listen(state: str | None) -> None:
        listening.set()
        may_go_on.wait(20)
        heard.append(state)

    registering = threading.Thread(target=watch.register, args=("one", listen))
    registering.start()
    try:
        assert listening.wait(20)
        cluster.happens("one", "stopping")
        cluster.happens("one", None)
        wait_for(lambda: others == ["running", "stopping", None])
        assert heard == []
    finally:
        may_go_on.set()
        registering.join()
    assert heard == ["running", None]


def test_it_ends_at_once_when_it_is_closed(cluster: QueuedChanges) -> None:
    """A stream that says nothing is interrupted, a long pause too; a watch that is closed may be used again."""
    watch: StateWatch[str, str] = StateWatch.following("test", cluster, pause=3600, longest_pause=3600)
    seen = follow(cluster, watch)
    watch.close()
    wait_for(lambda: not watching(), 2)

    cluster.list_fails = True
    watch.register("one", seen.append)
    wait_for(lambda: len(cluster.listed) == 2)
    assert watch.age == math.inf
    watch.close()
    wait_for(lambda: not watching(), 2)

    cluster.list_fails = False
    watch.register("one", seen.append)
    wait_for(lambda: seen == ["running", "running"])
    watch.close()
    wait_for(lambda: not watching(), 2)


def test_it_goes_on_without_registrations(cluster: QueuedChanges, watch: StateWatch[str, str]) -> None:
    """Between two kernels the cluster is not listed again; who has cancelled is told nothing."""
    seen: list[str | None] = []
    registration = watch.register("one", seen.append)
    wait_for(lambda: bool(cluster.cursors))
    registration.cancel()
    cluster.happens("one", "running")
    wait_for(lambda: watch.get("one") == "running")
    assert seen == []
    watch.register("one", seen.append)
    assert seen == ["running"]
    assert len(cluster.listed) == 1
