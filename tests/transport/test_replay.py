"""The replay log: what is kept for whom, how much of it, and for how long."""

from __future__ import annotations

import logging

import pytest

from enterprise_gateway.transport.messages import KernelMessage
from enterprise_gateway.transport.replay import ReplayLog
from enterprise_gateway.transport.replaybudget import ReplayBudget


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def message(name, channel="iopub", msg_type="stream", size=0):
    raw = b'{"msg_type":"execute_request"}'
    return KernelMessage(
        channel, {"msg_type": msg_type, "msg_id": name}, {"msg_type": "execute_request"}, [raw, raw, b"", b"x" * size]
    )


def names(missed):
    return [m.header["msg_id"] for m in missed.messages]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(clock):
    return ReplayLog(100_000, 3, 60.0, ReplayBudget(logging.getLogger(__name__)), clock=clock)


def test_nothing_is_kept_for_nobody(log):
    """While everybody is attached nothing is kept."""
    log.attach("a")
    log.append(message("1"))
    assert (log.is_needed, log.size) == (False, 0)


def test_each_session_gets_its_own_gap(log):
    """Sessions that left at different times miss different messages; the log is empty when all are back."""
    log.attach("a"), log.attach("b"), log.attach("c")
    log.detach("a", ())
    log.append(message("1"))
    log.detach("b", ())
    log.append(message("2"))
    log.append(message("to b", "shell"), "b")
    log.append(message("to c", "shell"), "c")
    assert names(log.attach("b")) == ["2", "to b"]
    assert names(log.attach("a")) == ["1", "2"]
    assert log.size == 0


@pytest.mark.parametrize("returns_to", ["a detached session", "what nobody saw"])
def test_a_session_served_elsewhere_has_heard_of_former_processes(log, returns_to):
    """It gets what it missed but for the notices of what had become of them; whom nobody served gets these, too."""
    log.attach("a"), log.attach("b")
    log.detach("a", ["alias"]), log.detach("b", ())
    if returns_to == "what nobody saw":
        log.start_unattended()
        log.claim("a", 0)
    log.append(message("1"))
    log.append(message("it has died"), is_notice=True)
    log.begin_process()
    log.note_served_elsewhere("alias" if returns_to == "a detached session" else "a")
    log.append(message("2"))
    log.append(message("it will be culled"), is_notice=True)
    assert names(log.attach("a")) == ["1", "2", "it will be culled"]
    assert names(log.attach("b")) == ["1", "it has died", "2", "it will be culled"]
    assert log.size == 0


def test_what_somebody_saw_elsewhere_is_not_for_whoever_comes_first(log):
    """Nobody was attached here, but somebody to another gateway."""
    log.append(message("1"))
    log.append(message("it has died"), is_notice=True)
    log.begin_process()
    log.note_served_elsewhere("a")
    assert names(log.attach("b")) == ["1"]


def test_what_an_earlier_process_served_proves_nothing(log):
    """A session that no other gateway has served since the restart hears of it."""
    log.attach("a")
    log.detach("a", ())
    log.note_served_elsewhere("a")
    log.append(message("it has died"), is_notice=True)
    log.begin_process()
    assert names(log.attach("a")) == ["it has died"]


def test_unsent_messages_come_first(log):
    """What was queued for a websocket precedes what came after it was closed."""
    log.attach("a"), log.attach("b")
    log.detach("a", ())
    log.append(message("2"))
    log.keep_unsent("a", [message("1")])
    assert names(log.attach("a")) == ["1", "2"]


def test_unsent_messages_are_bounded(log):
    """Of what was queued, too, only the newest part within the limit is kept, and the rest counted."""
    log.attach("a")
    log.detach("a", ())
    log.keep_unsent("a", [message(str(number), size=30_000) for number in range(5)])
    missed = log.attach("a")
    assert (names(missed), missed.dropped) == (["2", "3", "4"], 2)


def test_overflow_spares_replies_and_states(log):
    """Output goes first: without reply and state a cell would stay busy for ever."""
    log.attach("a")
    log.detach("a", ())
    log.append(message("busy", msg_type="status"))
    log.append(message("reply", "shell", "execute_reply"), "a")
    for number in range(5):
        log.append(message(str(number), size=30_000))
    missed = log.attach("a")
    assert names(missed) == ["busy", "reply", "2", "3", "4"]
    assert (missed.dropped, missed.dropped_parent) == (2, b'{"msg_type":"execute_request"}')
    assert log.size == 0


def test_flood_of_replies_is_bounded(log):
    """Replies are not kept without bound either."""
    log.start_unattended()
    for number in range(1000):
        log.append(message(str(number), "shell", "execute_reply", size=1000), "a")
    assert log.size < 120_000
    assert log.attach("z").dropped > 800


def test_unattended_output_is_for_the_first(log):
    """What nobody saw goes to the first who attaches, replies among it."""
    log.append(message("1"))
    log.append(message("2", "shell"), "x")
    assert names(log.attach("any")) == ["1", "2"]
    assert names(log.attach("other")) == []


def test_sessions_are_forgotten(log, clock):
    """Only so many detached sessions are remembered, and only for some time."""
    log.attach("here")
    for name in "abcd":
        log.detach(name, ())
        clock.now += 10
    log.append(message("1"))
    assert names(log.attach("a")) == []
    assert names(log.attach("b")) == ["1"]
    clock.now += 41
    log.append(message("2"))
    assert names(log.attach("c")) == []
    assert names(log.attach("d")) == ["1", "2"]


def test_forgotten_sessions_need_no_log(log, clock):
    """When the last one that was waited for is forgotten, so are its messages."""
    log.attach("here")
    log.detach("a", ())
    log.append(message("1"))
    clock.now += 61
    log.append(message("2"))
    assert (log.size, log.is_needed) == (0, False)


def test_session_on_another_websocket(log):
    """A session that shows up on a websocket gets what it missed until that was attached, and its replies."""
    log.attach("here")
    log.detach("ws 1", {"x", "y"})
    log.append(message("1"))
    log.append(message("to x", "shell"), "x")
    log.attach("ws 2")
    up_to = log.number
    log.append(message("seen on ws 2"))
    log.append(message("to y", "shell"), "y")
    missed = log.claim("y", up_to)
    assert names(missed) == ["1", "to x", "to y"]
    assert set(missed.sessions) == {"ws 1", "x", "y"}
    assert log.claim("y", up_to) is None


class Budgeted:
    """Logs of several users' kernels under one budget."""

    def __init__(self, **limits):
        limits = {name: (lambda limit=limit: limit) for name, limit in limits.items()}
        self._budget = ReplayBudget(logging.getLogger("enterprise_gateway.test"), **limits)

    def log(self, user):
        return ReplayLog(1_000_000, 16, 60.0, self._budget, user)


def test_the_user_with_the_most_output_loses_some_first(expect_log):
    """Beyond the limit of all kernels together the user's output goes who keeps most, of the kernel that keeps most."""
    budgeted = Budgeted(max_bytes=100_000)
    greedy, other, modest = budgeted.log("greedy"), budgeted.log("greedy"), budgeted.log("modest")
    other.append(message("other", size=20_000))
    with expect_log("user greedy, whose keep most, loses output"):
        for number in range(10):
            greedy.append(message(str(number), size=10_000))
            modest.append(message(str(number), size=4_000))
    assert names(modest.attach("m")) == [str(number) for number in range(10)]
    assert names(other.attach("o")) == ["other"]
    missed = greedy.attach("g")
    assert names(missed) == [str(number) for number in range(missed.dropped, 10)]
    assert 0 < missed.dropped < 10


def test_what_was_fetched_makes_room(expect_log):
    """What is kept no more does not count: not what was replayed, nor what a kernel that has ended had kept."""
    budgeted = Budgeted(max_bytes=100_000)
    for _ in range(5):
        fetched, ended = budgeted.log("a"), budgeted.log("b")
        for log in (fetched, ended):
            log.append(message("1", size=40_000))
        assert names(fetched.attach("s")) == ["1"]
        ended.clear()


def test_what_had_not_arrived_counts(expect_log):
    """What a websocket had not received when it closed counts too, and goes first."""
    budgeted = Budgeted(max_bytes=100_000)
    log = budgeted.log("a")
    log.attach("s")
    log.detach("s", ())
    with expect_log("replay_total_limit"):
        log.keep_unsent("s", [message("unsent", size=60_000)])
        log.append(message("kept", size=60_000))
    missed = log.attach("s")
    assert (names(missed), missed.dropped) == (["kept"], 1)


def test_states_and_replies_go_last(expect_log):
    """What is not output outlives it, but not the limit."""
    budgeted = Budgeted(max_bytes=100_000)
    log = budgeted.log("a")
    with expect_log("replay_total_limit"):
        log.append(message("reply", "shell", "execute_reply", size=30_000))
        log.append(message("output", size=60_000))
        log.append(message("more", size=30_000))
        for number in range(4):
            log.append(message(f"reply {number}", "shell", "execute_reply", size=30_000))
    assert "output" not in names(log.attach("s"))
    assert log.size == 0


def test_sessions_of_one_user_are_bounded(expect_log):
    """Beyond the limit the oldest session of the user's kernel with most is forgotten; others keep theirs."""
    budgeted = Budgeted(max_sessions=5)
    many, few, other = budgeted.log("a"), budgeted.log("a"), budgeted.log("b")
    for log in (many, few, other):
        log.attach("x")
    few.detach("few", ())
    with expect_log("more than replay_user_sessions"):
        for number in range(4):
            many.detach(f"many {number}", (f"alias {number}",))
            other.detach(f"other {number}", ())
    assert [session[0] for session in many.detached_sessions()] == ["many 2", "many 3"]
    assert [session[0] for session in few.detached_sessions()] == ["few"]
    assert len(other.detached_sessions()) == 4
    for session in ("many 2", "many 3"):
        many.attach(session)
    for number in range(4):
        few.detach(f"more {number}", ())
    assert len(few.detached_sessions()) == 5
