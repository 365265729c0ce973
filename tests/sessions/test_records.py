"""The shape of records in memory and at rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enterprise_gateway.core.sessionrecords import as_loaded, as_stored, is_usable_id, phase_of
from enterprise_gateway.services.processproxies.contract import gateway_user
from enterprise_gateway.services.sessions.kernelsessionmanager import KernelSessionManager

from .conftest import a_kernel_id, a_start


def test_keys_are_text_at_rest_and_bytes_in_memory():
    """What is stored is JSON with the key as text; loading makes it bytes again, and neither changes its argument."""
    kernel_id = a_kernel_id()
    session = {kernel_id: {"kernel_id": kernel_id, **a_start(key=b"secret")}}
    stored = KernelSessionManager.pre_save_transformation(session)
    assert stored[kernel_id]["connection_info"]["key"] == "secret"
    assert session[kernel_id]["connection_info"]["key"] == b"secret"
    loaded = KernelSessionManager.post_load_transformation(json.loads(json.dumps(stored)))
    assert loaded == session
    assert stored[kernel_id]["connection_info"]["key"] == "secret"


def test_what_json_cannot_hold_is_left_out():
    """Objects in launch arguments do not keep a kernel from being recorded; sets and paths become what JSON has."""
    stored = as_stored({"k": {"launch_args": {"cwd": Path("/x"), "names": {"a"}, "raw": b"b", "n": None, 5: 1.5}}})
    assert stored == {"k": {"launch_args": {"names": ["a"], "raw": "b", "n": None, "5": 1.5}}}


@pytest.mark.parametrize("session", [{"k": "text"}, {"k": {"kernel_id": "other"}}, {"k": None}])
def test_invalid_records_are_refused(session):
    """A session must be an object of records that name the kernel they are filed under."""
    with pytest.raises(ValueError, match="not a kernel session record"):
        as_loaded(session)


@pytest.mark.parametrize("kernel_id", ["", ".", "..", "../x", "a/b", "a\0b", ".hidden", "x" * 129, None, 5, "a\n"])
def test_ids_that_could_leave_the_directory_are_unusable(kernel_id):
    """Only letters, digits, dots, dashes and underscores name files."""
    assert not is_usable_id(kernel_id)


def test_records_without_a_phase_are_of_running_kernels():
    """Enterprise Gateway 3.x knows no phases and records kernels that run."""
    assert phase_of({"kernel_id": "k"}) == "running"


def test_the_user_is_the_one_that_the_start_names():
    """KERNEL_USERNAME of the kernel's environment names the user."""
    assert KernelSessionManager.get_kernel_username(env={"KERNEL_USERNAME": "bob"}) == "bob"


@pytest.mark.parametrize("kwargs", [{}, {"env": None}, {"env": {}}, {"env": {"KERNEL_USERNAME": ""}}])
def test_without_a_name_it_is_the_user_that_the_gateway_runs_as(kwargs, monkeypatch):
    """As for limits and launches: the operating system tells, not variables that anybody may have set."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    assert KernelSessionManager.get_kernel_username(**kwargs) == gateway_user() != "mallory"


def test_a_record_knows_its_kernel():
    """One that does not name its kernel is that of the kernel it is filed under: nobody who reads it stumbles."""
    assert as_loaded({"k": {"kernel_name": "python3"}}) == {"k": {"kernel_name": "python3", "kernel_id": "k"}}
