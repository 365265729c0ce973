"""How many kernels there may be."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest

from enterprise_gateway.core.errors import LimitReachedError
from enterprise_gateway.core.limits import KernelLimits


class House:
    """Running kernels and limits that a test sets."""

    def __init__(self, total: int | None = None, per_user: int = -1, **running: int) -> None:
        self.running = Counter(running)
        self.total = total
        self.per_user = per_user
        self.limits = KernelLimits(lambda: self.running, lambda: self.total, lambda: self.per_user)

    def may_start(self, user: str) -> bool:
        try:
            with self.limits.reserve(user):
                return True
        except LimitReachedError:
            return False


@pytest.mark.parametrize(
    ("total", "per_user", "running", "starts"),
    [
        pytest.param(None, -1, {"alice": 1000}, True, id="no limits"),
        pytest.param(3, -1, {}, True, id="nobody there"),
        pytest.param(3, -1, {"alice": 2}, True, id="one left"),
        pytest.param(3, -1, {"alice": 3}, False, id="full"),
        pytest.param(3, -1, {"bob": 2, "carol": 1}, False, id="full of others"),
        pytest.param(3, -1, {"alice": 7}, False, id="overfull, since the limit was lowered"),
        pytest.param(0, -1, {}, False, id="zero in total"),
        pytest.param(None, 2, {"alice": 1}, True, id="one left for her"),
        pytest.param(None, 2, {"alice": 2}, False, id="she has hers"),
        pytest.param(None, 2, {"bob": 2, "al": 2, "Alice": 2, "alice2": 2}, True, id="others have theirs"),
        pytest.param(None, 0, {}, False, id="zero for each"),
        pytest.param(None, -7, {"alice": 9}, True, id="any negative number is no limit"),
        pytest.param(3, 2, {"alice": 1, "bob": 1}, True, id="within both"),
        pytest.param(3, 2, {"alice": 2}, False, id="within the total only"),
        pytest.param(3, 2, {"alice": 1, "bob": 2}, False, id="within hers only"),
    ],
)
def test_a_kernel_starts_within_the_limits(
    total: int | None, per_user: int, running: dict[str, int], starts: bool
) -> None:
    """As many as a limit says, in total and for each user by the whole name, and not one more."""
    assert House(total, per_user, **running).may_start("alice") is starts


def test_those_that_are_starting_count() -> None:
    """Ten requests at once do not exceed a limit of three, whichever users they are from."""
    house = House(total=4, per_user=3, bob=1)
    with ExitStack() as starting:
        for _ in range(3):
            starting.enter_context(house.limits.reserve("alice"))
        assert not house.may_start("alice")
        assert not house.may_start("bob")
        house.total = None
        assert not house.may_start("alice")
        assert house.may_start("bob")
    assert house.may_start("alice")


def test_running_and_starting_are_added() -> None:
    """One that runs and one that starts are two."""
    house = House(per_user=2, alice=1)
    with house.limits.reserve("alice"):
        assert not house.may_start("alice")
    assert house.may_start("alice")
    with house.limits.reserve("alice"):
        house.running["alice"] += 1
    assert not house.may_start("alice")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_failed_start_gives_its_place_back(error: type[BaseException]) -> None:
    """Whatever it failed with; what was starting before still counts."""
    house = House(per_user=2)
    with house.limits.reserve("alice"):
        with pytest.raises(error), house.limits.reserve("alice"):
            raise error
        assert house.limits.pending == {"alice": 1}
    assert house.limits.pending == {}


def test_a_refused_start_takes_no_place() -> None:
    """Asking again and again does not make it fuller, and leaves nothing behind."""
    house = House(total=1, per_user=1, alice=1)
    for number in range(100):
        assert not house.may_start(f"user-{number}")
    assert house.limits.pending == {}
    del house.running["alice"]
    assert house.may_start("alice")


def test_users_who_have_started_are_not_remembered() -> None:
    """A million users leave no million entries."""
    house = House()
    assert all(house.may_start(f"user-{number}") for number in range(100))
    assert len(house.limits.pending) == 0


def test_limits_hold_as_soon_as_they_are_changed() -> None:
    """They are read at each start; kernels that run already are not touched."""
    house = House(total=1, alice=1)
    assert not house.may_start("bob")
    house.total = 2
    assert house.may_start("bob")
    house.per_user = 0
    assert not house.may_start("bob")
    assert house.running == {"alice": 1}


def test_a_refusal_says_which_limit_it_is() -> None:
    """The total is named first; the sentence on users tells how many are counted, those that start too."""
    house = House(total=2, per_user=2, alice=1)
    with house.limits.reserve("alice"):
        with pytest.raises(LimitReachedError) as total, house.limits.reserve("alice"):
            pass
        house.total = None
        with pytest.raises(LimitReachedError) as per_user, house.limits.reserve("alice"):
            pass

    assert str(total.value) == "Resource Limit: 2 kernels may run at a time (max_kernels)."
    assert str(per_user.value) == (
        "A max kernels per user limit has been set to 2 and user 'alice' currently has 2 active kernel(s)."
    )
    assert total.value.status == per_user.value.status == 403


@pytest.mark.parametrize("user", ["", "Zoë", "李", "a b", "alice@example.com"])
def test_any_name_is_a_user(user: str) -> None:
    """Kernels without a user name are counted together, like those of any other user."""
    house = House(per_user=1)
    with house.limits.reserve(user):
        assert not house.may_start(user)
        assert house.may_start(f"{user}2")
