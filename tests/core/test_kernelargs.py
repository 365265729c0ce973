"""A kernel's command line and identity."""

from __future__ import annotations

import sys
import uuid
from typing import Any

import pytest

from enterprise_gateway.core.errors import InvalidRequestError
from enterprise_gateway.core.kernelargs import (
    MAX_LAUNCH_SECONDS,
    check_kernel_id,
    check_launch_timeout,
    fill,
    is_kernel_id,
)

KERNEL_ID = "0c1ba1ff-13f8-4e1e-9a75-3d4d9a0d4d28"
VALUES = {"kernel_id": KERNEL_ID, "port_range": "0..0", "nothing": "", "port": 8877}


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{kernel_id}", KERNEL_ID),
        ("--id={kernel_id}", f"--id={KERNEL_ID}"),
        ("{port_range}:{port}", "0..0:8877"),
        ("{kernel_id}{kernel_id}", KERNEL_ID * 2),
        ("a{nothing}b", "ab"),
        ("{unknown}", "{unknown}"),
        ("{unknown}{port}", "{unknown}8877"),
        ("{Port}", "{Port}"),
        ("{}", "{}"),
        ("{ port }", "{ port }"),
        ("{port", "{port"),
        ("port}", "port}"),
        ("{port!r}", "{port!r}"),
        ("{port:>9}", "{port:>9}"),
        ("{port.real}", "{port.real}"),
        ("{port[0]}", "{port[0]}"),
        ("{kernel-id}", "{kernel-id}"),
        ("{{port}}", "{8877}"),
        ("${port}", "$8877"),
        ('{"port": {"value": 1}}', '{"port": {"value": 1}}'),
        ("awk '{print $1}'", "awk '{print $1}'"),
        ("{prénom}", "{prénom}"),
        ("é{port}李", "é8877李"),
        ("", ""),
    ],
)
def test_known_placeholders_are_replaced_and_all_else_is_left_alone(word: str, filled: str) -> None:
    """Braces of JSON, awk and shells survive: a placeholder is a known name between braces and nothing more."""
    assert fill(["run", word], VALUES) == ["run", filled]


def test_a_value_is_not_looked_at_again() -> None:
    """What a value says between braces is text, not a placeholder; backslashes stay as they are."""
    assert fill(["{a}"], {"a": "{b}", "b": "secret"}) == ["{b}"]
    assert fill(["{a}"], {"a": r"\1\g<0>\n"}) == [r"\1\g<0>\n"]


def test_a_value_stays_within_its_word() -> None:
    """Blanks and quotes in a value split nothing, and an empty value leaves its word there."""
    assert fill(["run", "{a}", "{b}"], {"a": "x y; 'z", "b": ""}) == ["run", "x y; 'z", ""]


def test_the_kernelspec_is_not_changed() -> None:
    """Its command is filled for each kernel anew."""
    argv = ["python", "{kernel_id}"]
    fill(argv, VALUES)
    assert argv == ["python", "{kernel_id}"]


@pytest.mark.parametrize("name", ["python", "python3", f"python3.{sys.version_info[1]}"])
def test_a_leading_python_is_the_gateways_own(name: str) -> None:
    """As Jupyter does it for every kernelspec; a placeholder may stand for it."""
    assert fill([name, "-m", name], {}) == [sys.executable, "-m", name]
    assert fill(["{program}"], {"program": name}) == [sys.executable]


@pytest.mark.parametrize(
    "name", ["/usr/bin/python", "python2", "python3.0", "Python", "pythonw", "python3 ", "ipython"]
)
def test_any_other_program_is_what_it_says(name: str) -> None:
    """Other versions, full paths and other names are not replaced."""
    assert fill([name], {}) == [name]


def test_an_empty_command_stays_empty() -> None:
    """That a kernelspec has no command is for others to say."""
    assert fill([], VALUES) == []


@pytest.mark.parametrize(
    "kernel_id",
    [
        KERNEL_ID.upper(),
        KERNEL_ID.replace("-", ""),
        f"{{{KERNEL_ID}}}",
        f"urn:uuid:{KERNEL_ID}",
        f" {KERNEL_ID}",
        f"{KERNEL_ID}\n",
        f"{KERNEL_ID}/../x",
        KERNEL_ID[:-1],
        f"{KERNEL_ID}0",
        f"{KERNEL_ID[:-1]}g",
        f"{KERNEL_ID[:-1]}٨",
        f"{KERNEL_ID[:-2]}_8",
        "0c1ba1ff-13f8-1e1e-9a75-3d4d9a0d4d28",  # version 1
        "0c1ba1ff-13f8-5e1e-9a75-3d4d9a0d4d28",  # version 5
        "0c1ba1ff-13f8-4e1e-7a75-3d4d9a0d4d28",  # another variant
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "",
        "../../etc/passwd",
        None,
        42,
        True,
        [KERNEL_ID],
        {"id": KERNEL_ID},
        uuid.UUID(KERNEL_ID),
    ],
)
def test_a_kernel_id_has_one_form(kernel_id: Any) -> None:
    """It becomes part of paths, labels and host names: only the canonical text of a version 4 UUID is one."""
    assert not is_kernel_id(kernel_id)
    with pytest.raises(InvalidRequestError, match="must be a version 4 UUID in lower case"):
        check_kernel_id(kernel_id)


def test_ids_of_new_kernels_are_kernel_ids() -> None:
    """What the gateway makes up passes its own check, and is returned unchanged."""
    for kernel_id in [KERNEL_ID, *(str(uuid.uuid4()) for _ in range(100))]:
        assert is_kernel_id(kernel_id)
        assert check_kernel_id(kernel_id) == kernel_id


def test_the_answer_cuts_a_long_id_short() -> None:
    """A megabyte that a client sends as an id does not come back."""
    with pytest.raises(InvalidRequestError) as caught:
        check_kernel_id("a" * 1_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        (" 40 ", 40),
        ("+5", 5),
        ("1e2", 100),
        ("86400", MAX_LAUNCH_SECONDS),
        (40, 40),
        (1.5, 1.5),
    ],
)
def test_a_launch_timeout_is_a_positive_number_of_seconds(text: Any, seconds: float) -> None:
    """Clients send texts; a kernelspec may hold a number."""
    assert check_launch_timeout(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-1", "-0.0", "0.0", "86400.1", "1e9", "1e999", "inf", "-inf", "infinity", "nan", "NaN", "1e-400"),
        *("", " ", "abc", "30s", "30 s", "1,5", "0x10", "None", "true", "{}", "\0", "9" * 5000, "½"),
        *(-1, 86401, True, None, float("nan"), float("inf"), [30], {"seconds": 30}),
    ],
)
def test_any_other_launch_timeout_is_refused(text: Any) -> None:
    """Zero, less, more than a day, infinity, no number and no text: with a sentence that is not longer for it."""
    with pytest.raises(InvalidRequestError, match="^KERNEL_LAUNCH_TIMEOUT .* must be a positive number") as caught:
        check_launch_timeout(text)
    assert len(str(caught.value)) < 150
