"""The gateways that are compared: how each is installed, started and stopped."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from client import HttpConnection, RequestError
from tinykernel import write_stubs

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
VENVS = HERE / ".venvs"
FARMS = 4
SPECS = 60
START_SECONDS = 30.0
PROBE = """
import sys, importlib.metadata as m
names = sys.argv[1:]
out = {"python": sys.version.split()[0]}
for name in names:
    try: out[name] = m.version(name)
    except m.PackageNotFoundError: pass
import json; print(json.dumps(out))
"""


@dataclass(frozen=True)
class Target:
    """One gateway under measurement."""

    name: str
    title: str
    python: Path
    arguments: tuple[str, ...]
    main_module: str
    checkout: Path | None = None

    def versions(self) -> dict[str, str]:
        """Return the versions of the interpreter and of the packages that matter."""
        names = ["jupyter_enterprise_gateway", "jupyter_server", "jupyter_client", "tornado", "pyzmq", "traitlets"]
        out = subprocess.run(
            [self.python, "-c", PROBE, *names], check=True, capture_output=True, text=True, timeout=60
        ).stdout
        return dict(json.loads(out))


def make_targets(names: list[str], python: Path, eg_python: Path | None, checkout: Path) -> dict[str, Target]:
    """Return the requested targets; the peer's environment is created if it is missing.

    Parameters
    ----------
    names
        Of ``ours``, ``eg`` and ``js``.
    python
        Interpreter with the dependencies of this checkout; runs it and jupyter_server.
    eg_python
        Interpreter that has jupyter_enterprise_gateway 3.3.0, or None to use our own environment of it.
    checkout
        Where the package that is called ``ours`` stands.
    """
    gateway = ("-m", "enterprise_gateway", "--EnterpriseGatewayApp.list_kernels=True")
    server = (
        "-m",
        "jupyter_server",
        "--no-browser",
        "--allow-root",
        "--ServerApp.disable_check_xsrf=True",
        "--IdentityProvider.token=",
        "--ServerApp.ip=127.0.0.1",
        "--ZMQChannelsWebsocketConnection.limit_rate=False",
    )
    targets = {}
    for name in names:
        if name == "ours":
            module = "enterprise_gateway.enterprisegatewayapp"
            targets[name] = Target(name, "this checkout", python, (*gateway, "--ip=127.0.0.1"), module, checkout)
        elif name == "eg":
            interpreter = eg_python or make_peer_environment()
            module = "enterprise_gateway.enterprisegatewayapp"
            targets[name] = Target(name, "Enterprise Gateway 3.3.0", interpreter, (*gateway, "--ip=127.0.0.1"), module)
        else:
            module = "jupyter_server.serverapp"
            targets[name] = Target(name, "Jupyter Server 2", python, server, module)
    return targets


def make_peer_environment() -> Path:
    """Install the released Enterprise Gateway with pip in its own environment; it needs Python 3.10 or 3.11."""
    python = VENVS / "jupyter_enterprise_gateway-3.3.0" / "bin" / "python"
    if (python.parent / "jupyter-enterprisegateway").exists():
        return python
    found = [shutil.which(name) for name in ("python3.11", "python3.10")]
    if sys.version_info[:2] in ((3, 10), (3, 11)):
        found.insert(0, sys.executable)
    interpreters = [path for path in found if path and runs(path)]
    if not interpreters:
        raise RequestError("no Python 3.10 or 3.11 on PATH to install jupyter_enterprise_gateway 3.3.0 with")
    print(f"installing jupyter_enterprise_gateway 3.3.0 in {python.parent.parent}", file=sys.stderr)
    subprocess.run([interpreters[0], "-m", "venv", "--clear", python.parent.parent], check=True, timeout=120)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "jupyter_enterprise_gateway==3.3.0", "ipykernel<7"],
        check=True,
        timeout=600,
    )
    return python


def runs(path: str) -> bool:
    """Whether an interpreter really exists (pyenv leaves shims on PATH for versions that are not active)."""
    return subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0


class Farms:
    """The processes that serve tiny kernels, and the kernelspecs that use them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[str]] = []
        for number in range(FARMS):
            pipe = directory / f"farm{number}"
            os.mkfifo(pipe)
            local, remote = write_stubs(directory, pipe)
            self._write_specs(number, local, remote)
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, HERE / "tinykernel.py", pipe],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=(directory / f"farm{number}.log").open("w"),
                    text=True,
                    start_new_session=True,
                )
            )
        for number in range(SPECS - 2 * FARMS):
            self._write_spec(f"extra{number:02d}", ["/bin/false"], {})

    def _write_specs(self, number: int, local: Path, remote: Path) -> None:
        self._write_spec(f"tiny{number}", ["/bin/sh", str(local), "{connection_file}"], {})
        options = ("kernel-id", "response-address", "public-key", "port-range")
        argv = ["/bin/sh", str(remote)]
        for option in options:
            argv += [f"--RemoteProcessProxy.{option}", "{" + option.replace("-", "_") + "}"]
        proxy = {
            "class_name": "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy",
            "config": {"remote_hosts": "localhost"},
        }
        self._write_spec(f"remote{number}", argv, {"process_proxy": proxy})

    def _write_spec(self, name: str, argv: list[str], metadata: dict[str, object]) -> None:
        directory = self.directory / "share" / "kernels" / name
        directory.mkdir(parents=True)
        spec = {
            "argv": argv,
            "display_name": f"Kernel {name}",
            "language": "tiny",
            "env": {"BENCH_A": "1", "BENCH_B": "2"},
            "metadata": {"debugger": False, **metadata},
        }
        (directory / "kernel.json").write_text(json.dumps(spec, indent=1))
        for logo in ("logo-32x32.png", "logo-64x64.png"):
            (directory / logo).write_bytes(b"")

    def remote_stub(self) -> Path:
        """Return the launcher stub of the first farm."""
        return self.directory / "farm0-remote.sh"

    def local_stub(self) -> Path:
        """Return the local kernel stub of the first farm."""
        return self.directory / "farm0-local.sh"

    def reset(self) -> None:
        """Stop every kernel."""
        self._tell("reset")

    def count(self) -> int:
        """Return the number of kernels alive."""
        return sum(self._tell("count"))

    def _tell(self, command: str) -> list[int]:
        answers = []
        for process in self._processes:
            assert process.stdin
            assert process.stdout
            process.stdin.write(command + "\n")
            process.stdin.flush()
            answers.append(int(process.stdout.readline()))
        return answers

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


class Gateway:
    """One running gateway; ``startup`` is the time from its process's start to its first answer, in seconds."""

    def __init__(self, target: Target, directory: Path, farms: Farms) -> None:
        self.target = target
        self.log = directory / f"{target.name}.log"
        self.port = free_port()
        home = directory / f"home-{target.name}"
        home.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "JUPYTER_PATH": str(directory / "share"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "IPYTHONDIR": str(home / "ipython"),
            "EG_KERNEL_LOG_DIR": str(home),
            "EG_RESPONSE_IP": "127.0.0.1",
            "EG_RESPONSE_PORT": str(free_port()),
        }
        if target.checkout:
            environment["PYTHONPATH"] = str(target.checkout)
        self.farms = farms
        started = time.monotonic()
        self._process = subprocess.Popen(
            [target.python, *target.arguments, f"--port={self.port}", "--KernelSpecManager.ensure_native_kernel=False"],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self._await_answer(started + START_SECONDS)
        except BaseException:
            self.kill()
            raise
        self.startup = time.monotonic() - started

    def _await_answer(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RequestError(f"{self.target.name} ended at its start: {self.last_words()}")
            with contextlib.suppress(OSError), contextlib.closing(HttpConnection(self.port, 5)) as connection:
                connection.call("GET", "/api")
                return
            time.sleep(0.005)
        raise RequestError(f"{self.target.name} did not answer within {START_SECONDS:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """Return the last nonblank line of the gateway's log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "(no output)"

    def cpu(self) -> float:
        """CPU seconds that the gateway's process has used; its kernels are not counted."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> dict[str, int]:
        """Resident, unshared and proportional memory of the gateway's process, in kB."""
        sizes: dict[str, int] = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":")
            sizes[name] = int(value.split()[0])
        return {"rss": sizes["Rss"], "uss": sizes["Private_Clean"] + sizes["Private_Dirty"], "pss": sizes["Pss"]}

    def start_kernel(self, connection: HttpConnection, name: str = "tiny0") -> str:
        """Start a kernel and return its id."""
        return str(connection.call("POST", "/api/kernels", kernel_request(name))["id"])

    def kill(self) -> None:
        """Kill the gateway and every kernel."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.farms.reset()


def kernel_request(name: str) -> dict[str, object]:
    """Return the body that starts a kernel."""
    return {"name": name, "env": {"KERNEL_USERNAME": "bench"}}


_candidates = itertools.cycle(range(20000 + os.getpid() % 5000, 32000))


def free_port() -> int:
    """Return a loopback port that is free now, outside the operating system's ephemeral range."""
    for port in itertools.islice(_candidates, 5000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RequestError("no free port")
