"""Which host gets the next kernel."""

from __future__ import annotations

from enterprise_gateway.services.processproxies.hostchoice import HostChoice

HOSTS = ["a", "b", "c"]


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_host_has_its_turn() -> None:
    """round-robin starts with the next host each time, and tries the others after it."""
    choice = HostChoice()

    orders = [choice.order(HOSTS, "round-robin") for _ in range(4)]

    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_sets_of_hosts_take_turns_apart() -> None:
    """A kernelspec with hosts of its own does not disturb the turns of the others."""
    choice = HostChoice()
    choice.order(HOSTS, "round-robin")

    assert choice.order(["x", "y"], "round-robin") == ["x", "y"]
    assert choice.order(HOSTS, "round-robin") == ["b", "c", "a"]


def test_the_emptiest_host_is_first() -> None:
    """least-connection counts kernels that run and that are being started; the end of one counts at once."""
    choice = HostChoice()
    for kernel_id, host in (("1", "a"), ("2", "a"), ("3", "b"), ("4", "c")):
        choice.load.add_kernel_id(host, kernel_id)

    assert choice.order(HOSTS, "least-connection") == ["b", "c", "a"]
    choice.load.delete_kernel_id("1")
    choice.load.delete_kernel_id("2")
    choice.load.delete_kernel_id("2")
    assert choice.order(HOSTS, "least-connection") == ["a", "b", "c"]


def test_a_kernel_counts_on_one_host() -> None:
    """A kernel that was tried on one host and runs on another is not counted twice."""
    choice = HostChoice()
    choice.load.add_kernel_id("a", "1")
    choice.load.add_kernel_id("b", "1")

    assert choice.load.counts() == {"b": 1}


def test_unknown_hosts_never_attract() -> None:
    """A host that is not among the allowed ones is not chosen, however few kernels it has."""
    choice = HostChoice()
    for number, host in enumerate([*HOSTS, *HOSTS]):
        choice.load.add_kernel_id(host, str(number))
    choice.load.add_kernel_id("elsewhere", "x")

    assert choice.order(HOSTS, "least-connection") == HOSTS


def test_a_host_that_failed_is_tried_last_for_a_while() -> None:
    """It comes after all others until its time is over, or until it was reached."""
    clock = Clock()
    choice = HostChoice(clock, avoid_seconds=30)
    choice.failed("a")

    assert choice.order(HOSTS, "least-connection") == ["b", "c", "a"]
    clock.now += 31
    assert choice.order(HOSTS, "least-connection") == ["a", "b", "c"]

    choice.failed("b")
    choice.reached("b")
    assert choice.order(HOSTS, "least-connection") == ["a", "b", "c"]


def test_hosts_named_twice_count_once() -> None:
    """A host cannot get more than its share by being listed twice; no hosts give no order."""
    choice = HostChoice()

    assert choice.order(["a", "a", "b"], "round-robin") == ["a", "b"]
    assert choice.order([], "round-robin") == []
