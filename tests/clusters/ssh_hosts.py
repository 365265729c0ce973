"""Real OpenSSH servers for tests, with everything they need in one temporary directory.

Two kinds:

* :class:`LocalServer`: one ``sshd`` on a free port of 127.0.0.1. Needs ``openssh-server`` only.
* :class:`HostLab`: three hosts behind a bridge, each with an address, a process table, users and a firewall of its own
  (Linux namespaces): 10.251.N.11, .12 and .13; this machine is 10.251.N.1, with N = 0 for the first lab that is up at
  the same time. Needs root and what
  :mod:`tests.support.requirements` lists for ``ssh``. Nothing outside the namespaces
  is changed: the hosts see their own ``/etc/passwd``, ``/etc/shadow`` and ``/etc/sudoers``.

By hand::

    python -m tests.clusters.ssh_hosts      # hosts are up until Enter is pressed; prints the settings
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SSHD = "/usr/sbin/sshd"
MAX_LABS = 16
PASSWORD = "correct horse battery staple"

# Users of the hosts besides root: ted logs in with PASSWORD or the key and his shell is talkative; bob cannot log in.
# nora's login shell refuses everybody. By sudo, ted may become bob, and root anybody.
_USERS = {"ted": 52001, "bob": 52002, "nora": 52003}
_LOGIN_SHELLS = {"nora": "/usr/sbin/nologin"}


class _Server:
    """What both kinds have in common: an address, and a log that tells what clients did."""

    def __init__(self, address: str, port: int, folder: Path, name: str) -> None:
        self.address = address
        self.port = port
        self.folder = folder
        self.name = name
        self.log_file = folder / f"{name}.log"

    @property
    def key_file(self) -> Path:
        """The private key that opens the server."""
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        """The file with the server's host key."""
        return self.folder / "known_hosts"

    def logins(self) -> int:
        """Return how many connections have logged in since the server was started."""
        return len(re.findall("Accepted (publickey|password)", self.log_file.read_text()))

    def sessions(self) -> int:
        """Return how many commands were run since the server was started."""
        return self.log_file.read_text().count("Starting session: ")

    def wait_until_up(self) -> None:
        """Wait for the server to answer, 10 seconds at most."""
        for _ in range(500):
            with suppress(OSError), socket.create_connection((self.address, self.port), timeout=1) as connection:
                if connection.recv(100):
                    return
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not answer: {self.log_file.read_text()}")


class LocalServer(_Server):
    """One sshd on 127.0.0.1, for the user who runs the tests."""

    def __init__(self, folder: Path) -> None:
        super().__init__("127.0.0.1", _free_port(), folder, "localhost")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start the server; ``options`` are further ``Keyword=value`` of sshd_config."""
        _make_keys(self.folder)
        _note_host_key(self.folder, [f"[{self.address}]:{self.port}"])
        self._process = subprocess.Popen(
            [SSHD, "-D", *_options(self.folder, self.log_file, self.address, self.port, options)]
        )
        self.wait_until_up()

    def stop(self) -> None:
        """Stop the server and all its connections."""
        if self._process is not None:
            children = _children(self._process.pid)
            self._process.terminate()
            self._process.wait(10)
            self._process = None
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


class Host(_Server):
    """One host of a :class:`HostLab`."""

    def __init__(self, lab: int, number: int, folder: Path) -> None:
        super().__init__(f"10.251.{lab}.1{number}", 22, folder, f"egssh{number}")
        self._namespace, self._link, self._bridge = _namespace(lab, number), _link(lab, number), _bridge(lab)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the host and start its sshd."""
        _ip("netns", "add", self._namespace)
        # The peer is made inside its namespace: never let an interface of this machine be moved by mistake.
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        _ip("link", "set", self._link, "master", self._bridge, "up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set lo up", "link set eth0 up"):
            _ip("-n", self._namespace, *command.split())
        self.start_sshd()

    def start_sshd(self, *options: str, env: Mapping[str, str] | None = None) -> None:
        """Start sshd as the first process of the host: when it ends, everything on the host ends."""
        binds = _own_users(self.folder)
        settings = _options(self.folder, self.log_file, self.address, self.port, (*_LAB_OPTIONS, *options))
        sshd = " ".join([SSHD, "-D", *settings])
        namespaces = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
        script = f"hostname {self.name} && {binds} && exec {sshd}"
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self._namespace, *namespaces, "sh", "-ec", script],
            env={**os.environ, **(env or {})},
        )
        self.wait_until_up()

    def power_off(self) -> None:
        """End every process of the host without a goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def stop(self) -> None:
        """Remove the host."""
        self.power_off()
        _remove_namespace(self._namespace)

    def link_down(self) -> None:
        """Cut the host's cable."""
        _ip("link", "set", self._link, "down")

    def link_up(self) -> None:
        """Plug the host's cable in again."""
        _ip("link", "set", self._link, "up")

    def firewall(self) -> None:
        """Let nothing but SSH reach the host from outside."""
        self._nft(
            "table inet eg {\n chain input {\n  type filter hook input priority 0; policy drop;\n"
            "  iif lo accept\n  ct state established,related accept\n  tcp dport 22 accept\n }\n}\n"
        )

    def no_firewall(self) -> None:
        """Let everything reach the host again."""
        self._nft("flush ruleset\n")

    def processes(self, word: str) -> list[str]:
        """Return the command lines of the host's processes that contain ``word``, as ``ps`` shows them there."""
        return [line for line in self._command_lines().values() if word in line]

    def drop_connections(self) -> None:
        """End every SSH connection, as a crash of the server would."""
        for pid, line in self._command_lines().items():
            if line.startswith("sshd: ") and "[listener]" not in line:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have the host accept connections and never answer."""
        listeners = [pid for pid, line in self._command_lines().items() if SSHD in line]
        for pid in listeners:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in listeners:
                os.kill(pid, signal.SIGCONT)

    def _command_lines(self) -> dict[int, str]:
        lines = {}
        for pid in map(int, _ip("netns", "pids", self._namespace).split()):
            with suppress(FileNotFoundError, ProcessLookupError):
                lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return lines

    def _nft(self, rules: str) -> None:
        command = ["ip", "netns", "exec", self._namespace, "nft", "-f", "-"]
        subprocess.run(command, input=rules.encode(), check=True, capture_output=True)


class HostLab:
    """Three SSH hosts and this machine's address among them."""

    def __init__(self) -> None:
        self.folder = Path()
        self.hosts: list[Host] = []
        self.gateway_address = ""
        self._number = self._lock = -1

    @property
    def key_file(self) -> Path:
        """The private key of root on all hosts."""
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        """The file with all hosts' keys."""
        return self.folder / "known_hosts"

    @property
    def absent_address(self) -> str:
        """An address of the hosts' network at which there is nothing."""
        return f"10.251.{self._number}.99"

    def start(self) -> None:
        """Bring the hosts up; what an interrupted run left behind is removed first."""
        self._number, self._lock = _take_number()
        self.folder = Path(tempfile.mkdtemp(prefix="eg-ssh-"))
        self.folder.chmod(0o755)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the hosts and everything on them."""
        for host in self.hosts:
            host.stop()
        _remove_leftovers(self._number)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def environment(self) -> dict[str, str]:
        """Return the gateway's environment variables for these hosts."""
        return {
            "EG_REMOTE_HOSTS": ",".join(host.address for host in self.hosts),
            "EG_REMOTE_USER": "root",
            "EG_SSH_KEY_FILES": str(self.key_file),
            "EG_SSH_KNOWN_HOSTS": str(self.known_hosts),
            "EG_RESPONSE_IP": self.gateway_address,
        }

    def as_user(self, name: str, readable: Sequence[Path]) -> list[str]:
        """Return what is put before a command, to run it on this machine as ``name`` and among the hosts' users.

        To all of them ``readable`` can be read, also where it lies in a directory that only root may enter.
        """
        uid, staging = _USERS.get(name, 0), self.folder / "staging"
        staged = {path: staging / str(number) for number, path in enumerate(readable)}
        script = [_own_users(self.folder), f"mkdir -p {staging}", f"mount -t tmpfs none {staging}"]
        script += [f"mkdir {place} && mount --bind {path} {place}" for path, place in staged.items()]
        script += [f"mount -t tmpfs -o mode=755 none {path}" for path in _closed_to_users(readable)]
        script += [f"mkdir -p {path} && mount --bind {place} {path}" for path, place in staged.items()]
        script.append(f'cd / && exec setpriv --reuid={uid} --regid=100 --clear-groups "$@"')
        return ["unshare", "--mount", "sh", "-ec", " && ".join(script), "sh"]

    def home(self, name: str) -> Path:
        """Return a user's home, which everybody can read."""
        return self.folder / f"home-{name}"

    def _start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        _make_keys(self.folder)
        _make_users(self.folder)
        bridge = _bridge(self._number)
        self.gateway_address = f"10.251.{self._number}.1"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self.gateway_address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        self.hosts = [Host(self._number, number, self.folder) for number in (1, 2, 3)]
        _note_host_key(self.folder, [host.address for host in self.hosts])
        for host in self.hosts:
            host.start()


def _take_number() -> tuple[int, int]:
    """Return the number of a lab that is not up, and the descriptor that holds it."""
    for number in range(MAX_LABS):
        path = Path(tempfile.gettempdir()) / f"eg-ssh-hosts-{number}.lock"
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        _remove_leftovers(number)
        if not _is_ours(f"10.251.{number}.1"):
            return number, lock
        os.close(lock)  # somebody else uses these addresses
    raise RuntimeError(f"{MAX_LABS} labs are up already")


def _is_ours(address: str) -> bool:
    """Tell whether ``address`` is one of this machine's."""
    with socket.socket() as probe, suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


def _namespace(lab: int, number: int) -> str:
    return f"eg{lab}ssh{number}"


def _link(lab: int, number: int) -> str:
    return f"eg{lab}sshv{number}"


def _bridge(lab: int) -> str:
    return f"eg{lab}sshbr"


_LAB_OPTIONS = ("PermitRootLogin=prohibit-password", "PasswordAuthentication=yes")


def _options(folder: Path, log: Path, address: str, port: int, further: Sequence[str]) -> list[str]:
    settings = [
        f"ListenAddress={address}",
        "PidFile=none",
        "StrictModes=no",
        f"AuthorizedKeysFile={folder / 'id.pub'}",
        "UsePAM=no",
        "LogLevel=VERBOSE",
        *further,
    ]
    options = [word for setting in settings for word in ("-o", setting)]
    return ["-f", "/dev/null", "-h", str(folder / "hostkey"), "-p", str(port), "-E", str(log), *options]


def _make_keys(folder: Path) -> None:
    for name in ("id", "hostkey"):
        if not (folder / name).exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)


def _note_host_key(folder: Path, names: Sequence[str]) -> None:
    key = (folder / "hostkey.pub").read_text().strip()
    (folder / "known_hosts").write_text("".join(f"{name} {key}\n" for name in names))


def _own_users(folder: Path) -> str:
    """Return the shell command that gives a mount namespace the hosts' users."""
    return " && ".join(f"mount --bind {folder / name} /etc/{name}" for name in ("passwd", "shadow", "sudoers"))


def _closed_to_users(paths: Sequence[Path]) -> set[Path]:
    """Return the topmost directories on the way to ``paths`` that others may not enter."""
    closed = ([parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001] for path in paths)
    return {directories[0] for directories in closed if directories}


def _make_users(folder: Path) -> None:
    crypt = ["openssl", "passwd", "-6", "-stdin"]
    secret = subprocess.run(crypt, input=PASSWORD, text=True, check=True, capture_output=True).stdout.strip()
    root = pwd.getpwuid(0)
    passwd, shadow = Path("/etc/passwd").read_text(), Path("/etc/shadow").read_text()
    for name, uid in _USERS.items():
        (folder / f"home-{name}").mkdir(mode=0o755)
        os.chown(folder / f"home-{name}", uid, root.pw_gid)
        passwd += f"{name}:x:{uid}:100::{folder / f'home-{name}'}:{_LOGIN_SHELLS.get(name, '/bin/bash')}\n"
        password = {"ted": secret, "bob": "!"}.get(name, "*")
        shadow += f"{name}:{password}:19000:0:99999:7:::\n"
    (folder / "home-ted" / ".bashrc").write_text("echo Welcome to this machine\necho Mind the gap >&2\n")
    for file, text, mode in (
        ("passwd", passwd, 0o644),
        ("shadow", shadow, 0o600),
        ("sudoers", "root ALL=(ALL) NOPASSWD: ALL\nted ALL=(bob) NOPASSWD: /usr/bin/sh, /usr/bin/kill\n", 0o440),
    ):
        (folder / file).write_text(text)
        (folder / file).chmod(mode)


def _remove_leftovers(lab: int) -> None:
    for number in (1, 2, 3):
        _remove_namespace(_namespace(lab, number))
        subprocess.run(["ip", "link", "del", _link(lab, number)], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", _bridge(lab)], capture_output=True, check=False)


def _remove_namespace(name: str) -> None:
    """Remove a network namespace and end the processes in it; nothing happens where there is none."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in pids.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listing.stdout.split()]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def local_server() -> Iterator[LocalServer]:
    """Run a :class:`LocalServer` in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="eg-sshd-") as folder:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        server = LocalServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def host_lab() -> Iterator[HostLab]:
    """Have a :class:`HostLab` up."""
    lab = HostLab()
    lab.start()
    try:
        yield lab
    finally:
        lab.stop()


if __name__ == "__main__":
    with host_lab() as lab:
        exports = "".join(f"export {variable}={value}\n" for variable, value in lab.environment().items())
        input(f"{exports}Press Enter to remove the hosts. ")
