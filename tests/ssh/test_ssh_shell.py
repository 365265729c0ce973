"""Commands on real SSH servers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from enterprise_gateway.core.errors import HostAuthenticationError, HostUnreachableError, KernelLaunchError
from enterprise_gateway.drivers import ssh_shell
from enterprise_gateway.drivers.ssh_shell import SSHPool, SSHSettings, SSHShell
from tests.clusters.ssh_hosts import PASSWORD, HostLab, LocalServer
from tests.support.waiting import wait_for

from .test_shell_scripts import HOSTILE, PRINT_ENVIRONMENT, environment_of

pytestmark = pytest.mark.ssh

Connect = Callable[[str, SSHSettings], SSHShell]


@pytest.fixture
def local_settings(local_sshd: LocalServer) -> SSHSettings:
    """Return settings that open the server on 127.0.0.1."""
    return SSHSettings(
        port=local_sshd.port, key_files=(str(local_sshd.key_file),), known_hosts=(str(local_sshd.known_hosts),)
    )


def answers(shell: SSHShell) -> bool:
    """Tell whether the host can be reached."""
    try:
        return shell.run(["true"]).status == 0
    except HostUnreachableError:
        return False


def test_a_command_runs_and_reports(shell: SSHShell) -> None:
    """Exit status, output, error output and input go through unchanged, any bytes and any size."""
    assert shell.run(["hostname"]) == (0, b"egssh1\n", b"")
    assert shell.run(["sh", "-c", "printf out; printf err >&2; exit 7"]) == (7, b"out", b"err")
    assert shell.run(["cat"], stdin=bytes(range(256)) * 10_000).stdout == bytes(range(256)) * 10_000
    assert len(shell.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3_000_000
    assert shell.run(["no-such-command"]).status == 127
    assert shell.run(["pwd"], cwd="/usr").stdout == b"/usr\n"


def test_hostile_values_arrive_unchanged(shell: SSHShell) -> None:
    """An environment of a megabyte, with everything a shell could take for its own, reaches the program as it is."""
    env = {**HOSTILE, **{f"LARGE_{number}": "$(id)'\n" * 16_000 for number in range(9)}}
    assert sum(map(len, env.values())) > 1_000_000

    result = shell.run([sys.executable, "-c", PRINT_ENVIRONMENT], env=env)

    seen = environment_of(result.stdout)
    assert {name: seen.get(name) for name in env} == env
    assert not Path("/tmp/eg-owned").exists()


def test_ps_shows_no_variables(lab: HostLab, shell: SSHShell) -> None:
    """While kernels are being started and running, no process of the host has a variable's value in its arguments."""
    secret = "hunter2-" + os.urandom(8).hex()
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.extend(lab.hosts[0].processes(secret))

    watcher = threading.Thread(target=watch)
    watcher.start()
    log = str(lab.folder / "ps.log")
    pids = [shell.start_detached(["sleep", "60"], env={"TOKEN": secret}, log_path=log) for _ in range(20)]
    shell.run(["sleep", "0.3"], env={"TOKEN": secret})
    done.set()
    watcher.join()

    assert seen == []
    # a process that is becoming another program has no command line for a moment
    wait_for(lambda: len(lab.hosts[0].processes("sleep 60")) == 20)
    for pid, pgid in pids:
        shell.signal(pid, pgid, 9)


def test_all_commands_share_one_connection(lab: HostLab, settings: SSHSettings) -> None:
    """A hundred commands from twenty threads make one login and a handful of sessions."""
    host = lab.hosts[1]
    logins, sessions = host.logins(), host.sessions()
    pool = SSHPool()
    try:
        with ThreadPoolExecutor(20) as threads:
            results = list(threads.map(lambda _: pool.shell(host.address, settings).run(["true"]), range(100)))
    finally:
        pool.close()

    assert {result.status for result in results} == {0}
    assert host.logins() - logins == 1
    assert host.sessions() - sessions <= ssh_shell.MAX_RESIDENTS


def test_a_server_that_grants_one_session_is_enough(tmp_path: Path, connect: Connect) -> None:
    """Commands queue up where the server allows fewer sessions than we would like."""
    server = LocalServer(tmp_path)
    server.start("MaxSessions=1")
    try:
        settings = SSHSettings(
            port=server.port, key_files=(str(server.key_file),), known_hosts=(str(server.known_hosts),)
        )
        shell = connect("127.0.0.1", settings)
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda _: shell.run(["sleep", "0.7"]), range(4)))
        assert {result.status for result in results} == {0}
        assert shell.connections_made == 1
    finally:
        server.stop()


def test_a_broken_connection_is_made_again(lab: HostLab, shell: SSHShell) -> None:
    """The command after a break gets a new connection, and what was started before still runs."""
    pid, pgid = shell.start_detached(["sleep", "60"], env={}, log_path=str(lab.folder / "broken.log"))
    lab.hosts[0].drop_connections()
    wait_for(lambda: not shell.connected)

    assert shell.alive([pid]) == {pid}
    assert shell.connections_made == 2
    assert shell.signal(pid, pgid, 9)


def test_a_command_out_of_time_does_not_harm_the_next(shell: SSHShell) -> None:
    """A time-out is reported in time; the connection stays in use."""
    shell.run(["true"])
    started = time.monotonic()
    with pytest.raises(HostUnreachableError, match=r"no result within 0\.3 seconds"):
        shell.run(["sleep", "2"], timeout=0.3)

    assert time.monotonic() - started < 2
    assert shell.run(["true"]).status == 0
    assert shell.connections_made == 1


def test_a_command_that_prints_without_end_is_given_up(shell: SSHShell) -> None:
    """Nobody on a host fills the gateway's memory; the next command works."""
    with pytest.raises(HostUnreachableError, match="printed more than 16777216 bytes"):
        shell.run(["cat", "/dev/zero"], timeout=20)
    assert shell.run(["true"]).status == 0


def test_a_cut_link_is_an_error_and_recovers(lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
    """While a host's link is cut, commands fail within their time; when it is back, they work, and kernels live."""
    host = lab.hosts[2]
    shell = connect(host.address, replace(settings, connect_timeout=1.0))
    pid, pgid = shell.start_detached(["sleep", "60"], env={}, log_path=str(lab.folder / "link.log"))
    host.link_down()
    try:
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(HostUnreachableError, match=host.address):
                shell.run(["true"], timeout=2)
            assert time.monotonic() - started < 4
    finally:
        host.link_up()

    wait_for(lambda: answers(shell))
    assert shell.alive([pid, 2**22 + 1]) == {pid}
    assert shell.signal(pid, pgid, 9)


def test_an_unreachable_host_says_why(lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
    """Each way of not reaching a host has a sentence of its own, and none of them is an authentication error."""
    for host, changed, words in (
        (lab.hosts[0].address, {"port": 2222}, "port 2222: connection refused"),
        ("no-such-host.invalid", {}, "name cannot be resolved"),
        (lab.absent_address, {"connect_timeout": 0.5}, "did not answer|no route"),
    ):
        with pytest.raises(HostUnreachableError, match=words):
            connect(host, replace(settings, **changed)).run(["true"])


def test_waiting_callers_share_a_failure(lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
    """Twenty callers of an unreachable host wait for one attempt, not for one after the other."""
    shell = connect(lab.absent_address, replace(settings, connect_timeout=0.5))
    started = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        futures = [threads.submit(shell.run, ["true"]) for _ in range(20)]
        assert all(isinstance(future.exception(), HostUnreachableError) for future in futures)
    assert time.monotonic() - started < 5


class TestHostKeys:
    """Who the host is must be known."""

    def test_an_unknown_host_is_refused(self, lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
        """By default a host without a known key is refused, before any credentials are sent."""
        shell = connect(lab.hosts[0].address, replace(settings, known_hosts=("/nonexistent",)))
        logins = lab.hosts[0].logins()
        with pytest.raises(HostAuthenticationError, match=r"host key \(SHA256:.*is not known"):
            shell.run(["true"])
        assert lab.hosts[0].logins() == logins

    @pytest.mark.parametrize("policy", ["reject", "accept-new"])
    def test_a_changed_key_is_refused(
        self, lab: HostLab, connect: Connect, settings: SSHSettings, tmp_path: Path, policy: str
    ) -> None:
        """A host that shows another key than the known one is refused, also when new hosts are accepted."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
        known = tmp_path / "known_hosts"
        known.write_text(f"{lab.hosts[0].address} {(tmp_path / 'other.pub').read_text()}")
        shell = connect(lab.hosts[0].address, replace(settings, known_hosts=(str(known),), host_key_policy=policy))
        with pytest.raises(HostAuthenticationError, match="is not the known one"):
            shell.run(["true"])

    def test_accept_new_notes_the_key(
        self, lab: HostLab, connect: Connect, settings: SSHSettings, tmp_path: Path
    ) -> None:
        """A new host is accepted once; from then on its key is the known one."""
        known = tmp_path / "folder" / "known_hosts"
        noting = replace(settings, known_hosts=(str(known),), host_key_policy="accept-new")
        connect(lab.hosts[0].address, noting).run(["true"])

        assert known.read_text() == f"{lab.hosts[0].address} {(lab.folder / 'hostkey.pub').read_text().strip()}\n"
        assert connect(lab.hosts[0].address, replace(noting, host_key_policy="reject")).run(["true"]).status == 0

    def test_hashed_names_and_other_ports_are_known(
        self, local_sshd: LocalServer, connect: Connect, local_settings: SSHSettings, tmp_path: Path
    ) -> None:
        """known_hosts is read as OpenSSH writes it."""
        known = tmp_path / "known_hosts"
        known.write_bytes(local_sshd.known_hosts.read_bytes())
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
        assert b"127.0.0.1" not in known.read_bytes()

        assert connect("127.0.0.1", replace(local_settings, known_hosts=(str(known),))).run(["true"]).status == 0

    def test_ignore_accepts_anything(self, lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
        """Where the operator says so, host keys do not matter."""
        ignoring = replace(settings, known_hosts=("/nonexistent",), host_key_policy="ignore")
        assert connect(lab.hosts[0].address, ignoring).run(["true"]).status == 0


class TestCredentials:
    """Who we are must be known to the host."""

    def test_a_password_logs_in(self, lab: HostLab, connect: Connect) -> None:
        """A user and a password are enough; what the login shell prints on its own is not part of any answer."""
        shell = connect(
            lab.hosts[1].address, SSHSettings(user="ted", password=PASSWORD, known_hosts=(str(lab.known_hosts),))
        )
        assert shell.run(["id", "-un"]) == (0, b"ted\n", b"")

    def test_a_wrong_password_is_refused(self, lab: HostLab, connect: Connect) -> None:
        """The error names host and user, and not the password."""
        shell = connect(
            lab.hosts[1].address, SSHSettings(user="ted", password="sesame", known_hosts=(str(lab.known_hosts),))
        )
        with pytest.raises(HostAuthenticationError, match=f"{lab.hosts[1].address}: user ted was refused") as caught:
            shell.run(["true"])
        assert caught.value.status == 403
        assert "sesame" not in str(caught.value) + repr(shell) + repr(shell.settings)

    def test_a_missing_key_file_is_named(self, lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
        """A key file that is not there is an error, not a reason to try others."""
        with pytest.raises(HostAuthenticationError, match="key file /nonexistent/id: no such file"):
            connect(lab.hosts[0].address, replace(settings, key_files=("/nonexistent/id",))).run(["true"])

    def test_an_agent_logs_in(
        self, lab: HostLab, connect: Connect, settings: SSHSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Keys of the SSH agent are used where no key files are named."""
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
        try:
            wait_for((tmp_path / "agent").exists)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            subprocess.run(["ssh-add", "-q", str(lab.key_file)], check=True)
            assert connect(lab.hosts[0].address, replace(settings, key_files=())).run(["true"]).status == 0
        finally:
            agent.terminate()
            agent.wait()

    def test_kerberos_without_support_is_explained(self, lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
        """Where paramiko cannot do GSS-API, the error says what to install."""
        with pytest.raises(HostAuthenticationError, match=r"EG_REMOTE_GSS_SSH|gssapi"):
            connect(lab.hosts[0].address, replace(settings, gss=True)).run(["true"])


class TestKernelProcesses:
    """What is started lives on, and dies alone."""

    def test_a_started_process_outlives_the_connection(self, lab: HostLab, shell: SSHShell) -> None:
        """It leads a session of its own, reads nothing, and writes to a log that only its user can read."""
        log = lab.folder / "logs" / "kernel-1.log"
        program = "echo started; read line || echo nothing to read; exec sleep 60"
        pid, pgid = shell.start_detached(["sh", "-c", program], env={}, log_path=str(log))
        wait_for(lambda: log.exists() and log.read_text() == "started\nnothing to read\n")
        shell.disconnect()

        assert pgid == pid > 1
        assert shell.alive([pid]) == {pid}
        assert shell.run(["ps", "-o", "sid=", "-p", str(pid)]).stdout.split() == [str(pid).encode()]
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert shell.tail(str(log), 1) == "nothing to read\n"
        shell.signal(pid, pgid, 9)
        wait_for(lambda: shell.alive([pid]) == set())

    def test_a_restart_appends_to_the_log(self, lab: HostLab, shell: SSHShell) -> None:
        """What the kernel before wrote is still there."""
        log = lab.folder / "again.log"
        for word in ("one", "two"):
            shell.start_detached(["echo", word], env={}, log_path=str(log))
            wait_for(lambda word=word: log.read_text().endswith(f"{word}\n"))  # type: ignore[misc]
        assert log.read_text() == "one\ntwo\n"

    def test_a_log_that_is_a_link_is_refused(self, lab: HostLab, shell: SSHShell) -> None:
        """Nobody can have a kernel's output written elsewhere by laying a link."""
        (lab.folder / "target").write_text("")
        (lab.folder / "laid.log").symlink_to(lab.folder / "target")
        with pytest.raises(KernelLaunchError, match=r"log file .*laid\.log cannot be written"):
            shell.start_detached(["true"], env={}, log_path=str(lab.folder / "laid.log"))

    def test_a_missing_directory_is_named(self, lab: HostLab, shell: SSHShell) -> None:
        """A working directory that is not there is an error at once."""
        with pytest.raises(KernelLaunchError, match="no directory /nonexistent"):
            shell.start_detached(["true"], env={}, cwd="/nonexistent", log_path=str(lab.folder / "x.log"))

    def test_a_kernel_dies_with_its_children_and_without_its_neighbours(self, lab: HostLab, shell: SSHShell) -> None:
        """A signal reaches the whole process group of one kernel and nothing else."""
        log = str(lab.folder / "group.log")
        kernels = [shell.start_detached(["sh", "-c", "sleep 61 & sleep 61; :"], env={}, log_path=log) for _ in range(2)]
        wait_for(lambda: len(lab.hosts[0].processes("sleep 61")) == 6)

        assert shell.signal(*kernels[0], 9)
        wait_for(lambda: len(lab.hosts[0].processes("sleep 61")) == 3)

        assert not shell.signal(*kernels[0], 15)
        assert shell.alive([pid for pid, _ in kernels]) == {kernels[1][0]}
        shell.signal(*kernels[1], 9)

    def test_many_processes_are_asked_for_at_once(self, shell: SSHShell) -> None:
        """A thousand processes cost one command."""
        assert shell.alive([*range(2_000_000, 2_001_000), 1]) == {1}
        assert shell.alive([]) == set()


class TestImpersonation:
    """Kernels as another user, by sudo."""

    def test_a_kernel_runs_as_the_other_user(self, lab: HostLab, connect: Connect, settings: SSHSettings) -> None:
        """It has that user's home and all variables of the launch; nothing of them is in sudo's arguments."""
        shell = connect(lab.hosts[0].address, replace(settings, user="ted"))
        log = lab.folder / "home-ted" / "kernel.log"
        env = {**HOSTILE, "HOME": "/wrong", "USER": "wrong", "TOKEN": "hunter3"}
        command = ["sh", "-c", "env -0; echo END; exec sleep 62"]
        pid, pgid = shell.start_detached(command, env=env, log_path=str(log), as_user="bob")
        wait_for(lambda: log.read_bytes().endswith(b"\0END\n"))  # env writes its pages one after the other

        seen = environment_of(log.read_bytes())
        assert seen["TOKEN"] == "hunter3"
        assert {name: seen.get(name) for name in HOSTILE} == HOSTILE
        assert (seen["HOME"], seen["USER"]) == (str(lab.folder / "home-bob"), "bob")
        assert lab.hosts[0].processes("hunter3") == []
        assert shell.run(["ps", "-o", "user=", "-g", str(pgid)]).stdout.split()[-1] == b"bob"
        kernel = int(shell.run(["pgrep", "-u", "bob", "-f", "sleep 62"]).stdout.split()[0])

        assert shell.alive([kernel]) == {kernel}
        with pytest.raises(KernelLaunchError, match="did not send signal 15"):
            shell.signal(kernel, 0, 15)
        assert shell.signal(kernel, 0, 15, as_user="bob")
        wait_for(lambda: shell.alive([kernel, pid]) == set())
