"""How far a start has come."""

from __future__ import annotations

from enterprise_gateway.core.states import Phase, Progress, State


def test_a_phase_keeps_its_time_and_gets_the_latest_detail() -> None:
    """What waits in a queue for a changing reason is one phase; nothing grows with the time that it waits."""
    times = iter([0.0, 10.5])
    progress = Progress(lambda: next(times))
    progress.reach(Phase.QUEUED)
    for reason in ("Priority", "Resources", "", "Resources"):
        progress.reach(Phase.QUEUED, reason)
    progress.reach(Phase.STARTED, "node1")

    assert progress.to_list() == [
        {"phase": "queued", "time": "1970-01-01T00:00:00.000000Z", "detail": "Resources"},
        {"phase": "started", "time": "1970-01-01T00:00:10.500000Z", "detail": "node1"},
    ]


def test_only_the_last_phase_is_the_end() -> None:
    """A kernel whose image is being pulled, or that waits, is not over."""
    assert [phase for phase in Phase if State(phase).has_ended] == [Phase.ENDED]
