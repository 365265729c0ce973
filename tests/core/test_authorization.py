"""Who may start and see which kernels, and as which uid and gid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from enterprise_gateway.core.authorization import MAX_ID, UserRules, name_set, permitted_id
from enterprise_gateway.core.errors import LaunchRefusedError


def rules(
    config: dict[str, Any] | None = None, authorized: Iterable[str] = (), unauthorized: Iterable[str] = ()
) -> UserRules:
    """Return the rules for a kernelspec with that config, on a gateway with those lists."""
    return UserRules.for_spec(config or {}, authorized, unauthorized)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("alice,bob", {"alice", "bob"}),
        (" alice , bob ", {"alice", "bob"}),
        (["alice", " bob "], {"alice", "bob"}),
        (("alice",), {"alice"}),
        ("alice", {"alice"}),
        ("alice,,bob,", {"alice", "bob"}),
        ("alice bob", {"alice bob"}),
        ("Zoë,李", {"Zoë", "李"}),
        ("", set()),
        (" , ", set()),
        ([], set()),
        ([""], set()),
        (None, set()),
        ([1001, "alice"], {"1001", "alice"}),
        (1001, {"1001"}),
    ],
)
def test_names_are_a_comma_text_or_a_list(entry: Any, names: set[str]) -> None:
    """Enterprise Gateway has comma texts, Gateway Provisioners lists; a number is the name that it reads."""
    assert name_set(entry) == names


@pytest.mark.parametrize(
    "user", ["al", "alic", "lice", "alice2", "Alice", "ALICE", "alice ", " alice", "alice,bob", ""]
)
@pytest.mark.parametrize("listed", ["alice,bob", ["alice", "bob"]])
def test_only_the_whole_name_is_the_name(user: str, listed: Any) -> None:
    """Parts of a listed name, other case and other blanks are other users, whether they are let in or kept out."""
    assert not rules({"authorized_users": listed}).permits(user)
    assert rules({"unauthorized_users": listed}).permits(user)
    for name in ("alice", "bob"):
        assert rules({"authorized_users": listed}).permits(name)
        assert not rules({"unauthorized_users": listed}).permits(name)


def test_characters_that_look_alike_are_not_the_same() -> None:
    """A letter of another script, and one with a combining accent make other names."""
    assert not rules({"authorized_users": "alice"}).permits("\u0430lice")
    assert not rules({"authorized_users": "zo\u00eb"}).permits("zoe\u0308")


def test_a_star_is_a_name_like_any_other() -> None:
    """Lists of users have no wildcard: a star lets nobody in and keeps nobody out but a user of that name."""
    assert not rules({"authorized_users": "*"}).permits("alice")
    assert rules({"unauthorized_users": "*"}).permits("alice")


@pytest.mark.parametrize(
    ("config", "authorized", "unauthorized", "permitted", "refused"),
    [
        pytest.param({}, (), (), {"alice", "root", ""}, set(), id="no list, no rule"),
        pytest.param({}, (), {"root"}, {"alice"}, {"root"}, id="denied on the gateway"),
        pytest.param({}, {"alice"}, (), {"alice"}, {"bob", ""}, id="allowed on the gateway"),
        pytest.param({"authorized_users": "bob"}, {"alice"}, (), {"bob"}, {"alice"}, id="the kernelspec's replace"),
        pytest.param({"authorized_users": ""}, {"alice"}, (), {"alice", "bob"}, set(), id="an empty list is no list"),
        pytest.param({"authorized_users": None}, {"alice"}, (), {"alice"}, {"bob"}, id="null is not there"),
        pytest.param(
            {"unauthorized_users": "bob"}, (), {"root"}, {"alice"}, {"bob", "root"}, id="the kernelspec's add"
        ),
        pytest.param({"unauthorized_users": ""}, (), {"root"}, {"alice"}, {"root"}, id="empty ones take nothing away"),
        pytest.param({"unauthorized_users": None}, (), {"root"}, {"alice"}, {"root"}, id="nor does null"),
        pytest.param({"authorized_users": "root,alice"}, (), {"root"}, {"alice"}, {"root", "bob"}, id="denied wins"),
        pytest.param({"authorized_users": "al", "unauthorized_users": "al"}, (), (), set(), {"al"}, id="it does here"),
        pytest.param({"authorized_users": False}, (), (), set(), {"alice"}, id="no list is not an empty list"),
    ],
)
def test_the_lists_of_gateway_and_kernelspec_are_combined(
    config: dict[str, Any], authorized: set[str], unauthorized: set[str], permitted: set[str], refused: set[str]
) -> None:
    """What lists show is what launches do: who is permitted may launch, and nobody else."""
    combined = rules(config, authorized, unauthorized)
    for user in permitted:
        assert combined.permits(user)
        combined.check_launch(user, "Python 3")
    for user in refused:
        assert not combined.permits(user)
        with pytest.raises(LaunchRefusedError):
            combined.check_launch(user, "Python 3")


def test_a_refusal_says_why_and_what_to_do() -> None:
    """The sentences are those that Enterprise Gateway documents; who is denied is not told who is allowed."""
    combined = rules({"authorized_users": "alice", "unauthorized_users": "bob"})
    advice = "Ensure KERNEL_USERNAME is set to an appropriate value and retry the request."
    with pytest.raises(LaunchRefusedError) as denied:
        combined.check_launch("bob", "Python 3")
    with pytest.raises(LaunchRefusedError) as unnamed:
        combined.check_launch("carol", "Python 3")

    assert str(denied.value) == f"User 'bob' is not authorized to start kernel 'Python 3'. {advice}"
    assert str(unnamed.value) == (
        f"User 'carol' is not in the set of users authorized to start kernel 'Python 3'. {advice}"
    )
    assert denied.value.status == unnamed.value.status == 403


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", "1000"),
        (" 1000 ", "1000"),
        ("1000\n", "1000"),
        ("01000", "1000"),
        ("+1000", "1000"),
        ("1_000", "1000"),
        ("\u0661\u0660\u0660\u0660", "1000"),
        ("1", "1"),
        (str(MAX_ID), str(MAX_ID)),
    ],
)
def test_an_id_reaches_the_kernel_as_plain_digits(text: str, number: str) -> None:
    """However it was written: what is compared with the prohibited ones is what is used."""
    assert permitted_id("UID", text, [0]) == number


@pytest.mark.parametrize("text", ["0", "00", "+0", "-0", " 0 ", "0_0", "\u0660", "\uff12\uff17", "27"])
@pytest.mark.parametrize("kind", ["UID", "GID"])
def test_a_prohibited_id_is_refused_however_it_is_written(kind: str, text: str) -> None:
    """Leading zeros, signs, blanks and digits of other scripts do not make it another number."""
    with pytest.raises(LaunchRefusedError, match=f"^Kernel {kind} (0|27) is prohibited by EG_PROHIBITED_{kind}S.$"):
        permitted_id(kind, text, [0, 27])


@pytest.mark.parametrize(
    "text", ["", " ", "root", "1.0", "1e3", "0x0", "0b0", "1000;id", "1 000", "--1", "\0", "9" * 5000]
)
def test_an_id_that_is_no_number_is_refused(text: str) -> None:
    """Nothing but a decimal integer is one; a long text is cut short in the answer."""
    with pytest.raises(LaunchRefusedError, match="must be in range|is not a valid integer") as caught:
        permitted_id("UID", text, [])
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("text", ["-1", "-1000", str(MAX_ID + 1), "99999999999999"])
def test_an_id_out_of_range_is_refused(text: str) -> None:
    """Where numbers wrap, -1 or 2**32 is root."""
    with pytest.raises(LaunchRefusedError, match=f"^Kernel GID '{text}' must be in range 0..{MAX_ID}.$"):
        permitted_id("GID", text, [0])


def test_nothing_is_prohibited_by_an_empty_list() -> None:
    """An administrator may let kernels run as root."""
    assert permitted_id("UID", "0", []) == "0"
