"""What a host says of its processes, whose environments are their owners' words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enterprise_gateway.core.kernelargs import is_kernel_id
from enterprise_gateway.drivers.ssh_shell import Result, leaders_in

KERNEL_ID = "8a1f29ae-3a5b-4f0e-9c83-0e1d3e1f6a77"
words = st.one_of(
    st.binary(max_size=40).filter(lambda word: b"\0" not in word),
    st.sampled_from([b"leader", b"login", b"0", b"4711", b"12345 0 0", b"12345 7 0", b"1 2 3 4", b"root", b""]),
    st.just(f"KERNEL_ID={KERNEL_ID}".encode()),
    st.sampled_from([b"KERNEL_USERNAME=bob", b"KERNEL_ID=x\r4711 x", b"x\nKERNEL_ID=" + KERNEL_ID.encode()]),
)
outputs = st.one_of(st.binary(max_size=300), st.builds(b"\0".join, st.lists(words, max_size=14)))


@given(output=outputs)
def test_what_a_host_tells_of_processes_is_of_the_right_form_or_left_out(output: bytes) -> None:
    """Numbers are numbers, names are short, and nobody's process is ours by what its environment says."""
    for leader in leaders_in(output):
        assert leader.pid >= 0
        assert leader.uid >= 0
        assert leader.kernel_id == "" or len(leader.kernel_id) == 36
        assert len(leader.username) <= 32
        assert is_kernel_id(leader.kernel_id) or leader.kernel_id != KERNEL_ID
        if leader.is_ours:
            assert output.split(b"\0")[1] == str(leader.uid).encode()


@given(variables=st.lists(st.binary(max_size=80).filter(lambda text: b"\0" not in text), max_size=4))
def test_a_process_speaks_for_itself_only(variables: list[bytes]) -> None:
    """Whatever its environment holds, there is one process, and it is the one that the host has named."""
    output = b"\0".join([b"login", b"0", b"leader", b"4711", b"99 1000 1000", b"ted", *variables])
    told = leaders_in(output)
    assert [(leader.pid, leader.uid, leader.is_ours) for leader in told if leader.pid == 4711] == [(4711, 1000, False)]


@given(stdout=st.binary(max_size=3_000), stderr=st.binary(max_size=3_000))
def test_a_complaint_is_one_short_line(stdout: bytes, stderr: bytes) -> None:
    """It stands in messages and in the log."""
    complaint = Result(1, stdout, stderr).complaint
    assert len(complaint) <= 500
    assert len(complaint.splitlines()) <= 1
