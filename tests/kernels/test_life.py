"""The state of a kernel, and whether a record describes its process: values only."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from enterprise_gateway.services.kernels.life import KernelLife
from enterprise_gateway.services.kernels.recordedprocess import RecordedProcess


def record(pid: int, **more: Any) -> dict[str, Any]:
    """Return the record of a kernel with a process."""
    return {"connection_info": {"shell_port": 1}, "process_info": {"pid": pid}, **more}


def test_the_age_of_a_kernel_is_that_of_its_present_process() -> None:
    """A restart begins at zero; a process of another gateway is as old as that gateway has recorded."""
    times = iter([10.0, 20.0, 30.0])
    life = KernelLife(lambda: next(times))
    assert life.started == datetime.fromtimestamp(10, timezone.utc)
    life.launching()
    assert life.started == datetime.fromtimestamp(20, timezone.utc)
    life.taken_over(5.0, 2)
    assert (life.started, life.restarts) == (datetime.fromtimestamp(5, timezone.utc), 2)
    life.launching()
    assert (life.started, life.restarts) == (datetime.fromtimestamp(30, timezone.utc), 2)


def test_deaths_are_counted_in_a_row() -> None:
    """A process that had run for long enough begins a new row, and a client's restart ends it."""
    life = KernelLife()
    for expected in (1, 2, 3):
        life.restarting_itself(was_stable=False)
        assert life.restarts == expected
    life.restarting_itself(was_stable=True)
    assert life.restarts == 1
    life.restarted_by_client()
    assert life.restarts == 0


def test_an_interrupted_restart_counts_as_one_death() -> None:
    """For clients of other gateways it is as if the kernel had died; deaths that were counted stay counted."""
    life = KernelLife()
    life.restart_was_cut_short()
    assert life.restarts == 1
    life.restarting_itself(was_stable=False)
    life.restart_was_cut_short()
    assert life.restarts == 2


def test_a_kernel_is_dead_until_it_has_a_process_again() -> None:
    """The reason is shown as long as it is dead; that it is being stopped is a different state."""
    life = KernelLife()
    assert (life.is_dead, life.died_because) == (False, "")
    life.died("its process has ended")
    assert (life.is_dead, life.died_because, life.ends_because) == (True, "its process has ended", "")
    life.revived()
    assert (life.is_dead, life.died_because) == (False, "")
    life.ending("the kernel was culled: it is older than 9 seconds")
    assert (life.is_dead, life.ends_because) == (False, "the kernel was culled: it is older than 9 seconds")


def test_a_record_is_matched_by_process_and_connection_only() -> None:
    """What changes while a process lives does not matter; another process or connection does."""
    ours = RecordedProcess()
    assert not ours.is_in(record(1))
    ours.loaded(record(1))
    assert ours.is_in(record(1, last_activity=7.0, restarts=3))
    assert not ours.is_in(record(2))
    assert not ours.is_in({**record(1), "connection_info": {"shell_port": 2}})
    ours.replaced()
    assert not ours.is_in(record(1))


def test_an_unconfirmed_write_is_uncertain_until_it_is_settled() -> None:
    """A store that is away is updated later; whether the record is of our process is known anyway."""
    ours = RecordedProcess()
    assert ours.is_certain
    ours.recorded(record(1), certain=False)
    assert ours.is_in(record(1))
    assert not ours.is_certain
    ours.settled()
    assert ours.is_certain
    ours.recorded(None, certain=True)
    assert not ours.is_in(record(1))
