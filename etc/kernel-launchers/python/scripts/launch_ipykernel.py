#!/usr/bin/env python
# eg-payload-version: 2
"""Start an IPython kernel and report to the gateway how it can be reached.

One self-contained file, because cluster managers ship only this file to the kernel's host. It needs Python 3.8 or
later, ipykernel and pycryptodomex. The protocol is described in ``docs/developers/launcher-protocol.md``.

With ``--listener-only`` no kernel is started: the file then serves a kernel of another language (R), whose launcher
runs it as ``server_listener.py``.
"""

from __future__ import annotations

import os
import sys

# Nothing is imported from the directory that contains this file, nor from the working directory, because both may
# belong to another user. The kernel itself adds the working directory before it runs user code.
if __name__ == "__main__":
    _distrusted = {"", os.path.dirname(os.path.realpath(__file__)), os.path.realpath(os.curdir)}
    sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) not in _distrusted]

import argparse
import ast
import atexit
import base64
import ctypes
import errno
import hashlib
import hmac
import json
import logging
import random
import secrets
import selectors
import signal
import socket
import tempfile
import threading
import time
import warnings
from typing import Any, Callable, NamedTuple, NoReturn

CHANNEL_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
REPORT_SECONDS = 30.0  # how long to retry an unreachable gateway
MAX_COMMAND_BYTES = 65536
MAX_CONNECTIONS = 64
SILENCE_SECONDS = 10.0  # how long a peer may stay connected without authenticating itself
LIVENESS_SECONDS = 0.25  # between checks of the kernel, if the system cannot report its end
SPARK_NAMES = ("spark", "sc", "sql", "sqlContext", "sqlCtx")

log = logging.getLogger("launch_ipykernel")


class LaunchError(Exception):
    """The kernel cannot be started; the message is the single line that the operator sees."""


# -- command line and environment --------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options; the new spelling of an option takes precedence over the old one."""
    parser = argparse.ArgumentParser(prog="launch_ipykernel", allow_abbrev=False)
    parser.add_argument("connection_file", nargs="?", help="deprecated: file to write the connection to")
    for name, default, text in (
        ("kernel-id", "", "id of the kernel"),
        ("public-key", "", "base64 of the gateway's RSA public key"),
        ("response-address", "", "ip:port to report to; without it only the connection file is written"),
        ("port-range", "0..0", "lower..upper port for all of the kernel's ports"),
        ("spark-context-initialization-mode", "none", "lazy, eager or none"),
        ("cluster-type", "spark", "spark, dask or none"),
    ):
        destination = name.replace("-", "_")
        parser.add_argument("--" + name, dest=destination, nargs="?", help=text)
        parser.add_argument(
            "--RemoteProcessProxy." + name, dest="old_" + destination, nargs="?", help="old spelling of --" + name
        )
        parser.set_defaults(**{"default_" + destination: default})
    parser.add_argument("--kernel-class-name", nargs="?", help="class of the kernel (ipykernel.ipkernel.IPythonKernel)")
    parser.add_argument("--transport-encryption", nargs="?", help="CurveZMQ: disabled, auto or required")
    parser.add_argument("--bind-address", nargs="?", help="address for the kernel's ports (default: all addresses)")
    parser.add_argument("--listener-only", action="store_true", help="serve the kernel of process --parent-pid")
    parser.add_argument("--parent-pid", type=int, default=0, help="with --listener-only: the kernel's process")
    parser.add_argument(
        "--connection-file", dest="connection_file_option", nargs="?", help="file to write the connection to"
    )
    options = parser.parse_args(argv)
    for name in [key[len("default_") :] for key in vars(options) if key.startswith("default_")]:
        value = getattr(options, name) or getattr(options, "old_" + name) or getattr(options, "default_" + name)
        setattr(options, name, value)
    options.connection_file = options.connection_file_option or options.connection_file or ""
    options.kernel_class_name = options.kernel_class_name or "ipykernel.ipkernel.IPythonKernel"
    options.transport_encryption = (
        options.transport_encryption or os.environ.get("TRANSPORT_ENCRYPTION") or "disabled"
    ).lower()
    check_options(options)
    return options


def check_options(options: argparse.Namespace) -> None:
    """Raise LaunchError for options that cannot work together or have unknown values."""
    if not options.kernel_id:
        raise LaunchError("option --kernel-id is required")
    if options.response_address and not options.public_key:
        raise LaunchError("option --public-key is required")
    if options.listener_only and not (options.parent_pid > 1 and options.connection_file):
        raise LaunchError("--listener-only needs --parent-pid and --connection-file")
    for name, allowed in (
        ("cluster_type", ("spark", "dask", "none")),
        ("spark_context_initialization_mode", ("lazy", "eager", "none")),
        ("transport_encryption", ("disabled", "auto", "required")),
    ):
        if getattr(options, name) not in allowed:
            raise LaunchError(
                "--{} must be one of {}, not {!r}".format(
                    name.replace("_", "-"), ", ".join(allowed), getattr(options, name)
                )
            )
    if options.cluster_type == "spark" and options.spark_context_initialization_mode == "none":
        options.cluster_type = "none"


def configure_logging() -> None:
    """Log to a private copy of standard error, because ipykernel sends the original to the notebook."""
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", buffering=1))
    handler.setFormatter(logging.Formatter("[%(levelname)1.1s %(asctime)s %(name)s] %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    level = setting("LOG_LEVEL", "10").strip().upper()
    try:
        log.setLevel(int(level) if level.isdigit() else level)
    except ValueError:
        log.setLevel(logging.DEBUG)


def setting(name: str, default: str) -> str:
    """Return the environment variable ``name``, or else its EG_ form, or else the default."""
    return os.environ.get(name) or os.environ.get("EG_" + name) or default


def take_secret() -> bytes | None:
    """Return the gateway's one-time secret and remove it from this process's environment."""
    name = "EG_LAUNCH_SECRET"
    secret = os.environ.get(name, "")
    if secret:
        try:  # /proc/<pid>/environ shows the original memory, which unsetenv does not change
            libc = ctypes.CDLL(None)
            libc.getenv.restype = ctypes.c_void_p
            address = libc.getenv(name.encode())
            if address:
                ctypes.memset(address, ord("-"), len(secret))
        except (OSError, AttributeError, TypeError):
            log.debug("The launch secret remains readable in this process's initial environment")
    os.environ.pop(name, None)
    return secret.encode() or None


# -- ports ----------------------------------------------------------------------------------------------------------


class PortRange:
    """Finds ports in ``lower..upper``; with an empty range the system chooses."""

    def __init__(self, text: str) -> None:
        lower, separator, upper = text.partition("..")
        try:
            self.lower, self.upper = int(lower), int(upper)
        except ValueError:
            separator = ""
        if not separator:
            raise LaunchError(f"--port-range must be lower..upper, not {text!r}")
        size = self.upper - self.lower
        self.any_port = size == 0
        minimum = int(setting("MIN_PORT_RANGE_SIZE", "1000"))
        if not self.any_port and size < minimum:
            raise LaunchError(f"--port-range {text} has size {size}, the minimum is {minimum}")
        if not self.any_port and not 1024 <= self.lower < self.upper <= 65535:
            raise LaunchError(f"--port-range {text} is not within 1024..65535")
        self.retries = int(setting("MAX_PORT_RANGE_RETRIES", "5"))

    def bind(self, bind: Callable[[int], int]) -> int:
        """Call ``bind`` with candidates (0: any) until one is free; return the bound port."""
        if self.any_port:
            return bind(0)
        for _ in range(self.retries + 1):
            try:
                return bind(random.randint(self.lower, self.upper))
            except Exception as error:  # OSError or zmq.ZMQError, which is not an OSError
                if getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        raise LaunchError(f"found no free port in {self.lower}..{self.upper} after {self.retries} retries")


def bind_address(options: argparse.Namespace) -> str:
    """Return the address to bind: all addresses, including IPv6 if the gateway has an IPv6 address."""
    return options.bind_address or ("::" if options.response_address.startswith("[") else "0.0.0.0")


def bound_socket(ports: PortRange, address: str) -> socket.socket:
    """Return a TCP socket bound within the port range; it does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address == "::":
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)

    def bind(port: int) -> int:
        bound.bind((address, port))
        return int(bound.getsockname()[1])

    ports.bind(bind)
    return bound


# -- connection file and report ---------------------------------------------------------------------------------


def connection_file_path(options: argparse.Namespace) -> str:
    """Return the given path if its directory exists, otherwise a path in a new private directory."""
    given = os.path.abspath(options.connection_file) if options.connection_file else ""
    if given and os.path.isdir(os.path.dirname(given)):
        return given
    safe_id = "".join(c for c in options.kernel_id if c.isalnum() or c in "-_")
    return os.path.join(tempfile.mkdtemp(prefix=f"kernel-{safe_id}_"), f"kernel-{safe_id}.json")


def write_connection_file(path: str, info: dict[str, Any]) -> None:
    """Write the file atomically, readable only by its owner."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".kernel-")
    with os.fdopen(descriptor, "w") as file:  # mkstemp created it with mode 0600
        json.dump(info, file, indent=2, sort_keys=True)
    os.replace(temporary, path)


def remove_connection_file(path: str) -> None:
    """Remove the file, and its directory if it was created for the file."""
    directory = os.path.dirname(path)
    try:
        os.unlink(path)
    except OSError:
        pass
    if os.path.basename(directory).startswith(os.path.splitext(os.path.basename(path))[0] + "_"):
        try:
            os.rmdir(directory)
        except OSError:
            pass


def encode_payload(
    info: dict[str, Any], public_key: str, secret: bytes | None, random_bytes: Callable[[int], bytes] = os.urandom
) -> bytes:
    """Return the wire form of the connection information: version 2 with a secret, version 1 without."""
    try:
        from Cryptodome.PublicKey import RSA
    except ImportError as error:
        raise LaunchError(f"package pycryptodomex is needed: {error}") from error
    try:
        key = RSA.import_key(base64.b64decode(public_key))
    except (ValueError, IndexError, TypeError) as error:
        raise LaunchError(f"--public-key is not a base64 encoded RSA key: {error}") from error
    plain = json.dumps(info).encode()
    if secret is None:
        envelope = _payload_v1(plain, key, random_bytes)
    else:
        envelope = _payload_v2(plain, str(info["kernel_id"]), key, secret, random_bytes)
    return base64.b64encode(json.dumps(envelope).encode())


def _payload_v1(plain: bytes, key: Any, random_bytes: Callable[[int], bytes]) -> dict[str, Any]:
    from Cryptodome.Cipher import AES, PKCS1_v1_5
    from Cryptodome.Util.Padding import pad

    aes_key = random_bytes(16)
    return {
        "version": 1,
        "key": _text(PKCS1_v1_5.new(key).encrypt(aes_key)),
        "conn_info": _text(AES.new(aes_key, AES.MODE_ECB).encrypt(pad(plain, 16))),
    }


def _payload_v2(
    plain: bytes, kernel_id: str, key: Any, secret: bytes, random_bytes: Callable[[int], bytes]
) -> dict[str, Any]:
    from Cryptodome.Cipher import AES, PKCS1_OAEP
    from Cryptodome.Hash import SHA256

    content_key, nonce = random_bytes(32), random_bytes(12)
    wrapped = _text(PKCS1_OAEP.new(key, hashAlgo=SHA256).encrypt(content_key))
    cipher = AES.new(
        hmac.new(secret, b"EG-payload-v2" + content_key, hashlib.sha256).digest(), AES.MODE_GCM, nonce=nonce
    )
    cipher.update(b"\0".join((b"EG-payload-v2", kernel_id.encode(), wrapped.encode())))
    return {
        "version": 2,
        "kernel_id": kernel_id,
        "key": wrapped,
        "nonce": _text(nonce),
        "conn_info": _text(b"".join(cipher.encrypt_and_digest(plain))),
    }


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def parse_response_address(text: str) -> tuple[str, int]:
    """Split ``ip:port`` or ``[ipv6]:port``."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise LaunchError(f"--response-address must be ip:port, not {text!r}")
    return host, int(port)


def send_report(address: tuple[str, int], payload: bytes) -> None:
    """Deliver the payload, with retries, because a new container's network may need some seconds."""
    end = time.monotonic() + REPORT_SECONDS
    pause = 0.1
    while True:
        try:
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(payload)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(2)
                try:  # the gateway closes after it has read everything; a reset means that it has not
                    connection.recv(1)
                except socket.timeout:
                    pass
            return
        except OSError as error:
            if time.monotonic() + pause > end:
                raise LaunchError("cannot report to the gateway at {}:{}: {}".format(*address, error)) from error
            log.warning("Reporting to the gateway failed, retrying: %s", error)
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


# -- communication port ---------------------------------------------------------------------------------------------


class KernelProcess:
    """The kernel's process: checks whether it is alive, and signals it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptor = -1
        try:
            self.descriptor = os.pidfd_open(pid)  # type: ignore[attr-defined]
        except ProcessLookupError:
            raise LaunchError(f"there is no process {pid}") from None
        except (AttributeError, OSError):  # Python 3.8, an old kernel, another system
            log.debug("No pidfd: checking the kernel every %s seconds", LIVENESS_SECONDS)
        self._started = self._start_time()

    def _start_time(self) -> str:
        """Return the start time, which distinguishes a later process with the same id; empty if it has ended."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except FileNotFoundError:
            return "" if os.path.isdir("/proc/self") else "unknown"
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]

    def alive(self) -> bool:
        """Whether the process is running (a zombie is not)."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return bool(self._started) and self._start_time() == self._started

    def send_signal(self, signum: int) -> None:
        """Signal the kernel, and its children if it leads its own process group, as Jupyter does."""
        if not self.alive():
            raise ProcessLookupError(errno.ESRCH, "the kernel has ended")
        if signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) and os.getpgid(self.pid) == self.pid:
            os.killpg(self.pid, signum)
        elif signum:
            os.kill(self.pid, signum)

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _Peer:
    """One connection to the communication port."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.challenge = secrets.token_hex(16)
        self.sequence = 0
        self.deadline = time.monotonic() + SILENCE_SECONDS

    @property
    def authenticated(self) -> bool:
        return self.sequence > 0


class Listener:
    """Serves the communication port until the kernel ends or the gateway sends ``{"shutdown": 1}``.

    Without a secret it speaks version 1 (one JSON object per connection), with one version 2 (authenticated lines).
    """

    allowed_signals = frozenset(
        (0, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    )

    def __init__(
        self, server: socket.socket, process: KernelProcess, secret: bytes | None, cancels_spark_jobs: bool
    ) -> None:
        self._server = server
        self._process = process
        self._key = hmac.new(secret, b"EG-comm-v2", hashlib.sha256).digest() if secret else None
        self._cancels_spark_jobs = cancels_spark_jobs
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, _Peer] = {}
        self._ended = False

    def serve(self) -> None:
        """Serve until the kernel ends or a shutdown command, then close everything."""
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        if self._process.descriptor >= 0:
            self._selector.register(self._process.descriptor, selectors.EVENT_READ, self._end)
        try:
            while not self._ended and self._process.alive():
                for key, _ in self._selector.select(self._patience()):
                    try:
                        key.data()
                    except Exception as error:
                        log.warning("Communication port: %s", error)
                self._drop_silent()
        finally:
            self._server.close()  # first: a client that sees its connection end and reconnects must be refused
            for peer in list(self._peers.values()):
                self._drop(peer)
            self._selector.close()

    def _patience(self) -> float | None:
        """Return the seconds until the next check that is due without any input."""
        limits = [peer.deadline - time.monotonic() for peer in self._peers.values() if not peer.authenticated]
        if self._process.descriptor < 0:
            limits.append(LIVENESS_SECONDS)
        return max(0.0, min(limits)) if limits else None

    def _end(self) -> None:
        self._ended = True

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # the client has already disconnected
            return
        if len(self._peers) >= MAX_CONNECTIONS:
            strangers = [peer for peer in self._peers.values() if not peer.authenticated]
            self._drop((strangers or list(self._peers.values()))[0])
        connection.setblocking(False)
        peer = _Peer(connection)
        self._peers[connection] = peer
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(peer))
        if self._key:
            self._send(peer, {"version": 2, "challenge": peer.challenge})

    def _drop(self, peer: _Peer) -> None:
        if self._peers.pop(peer.connection, None):
            self._selector.unregister(peer.connection)
            peer.connection.close()

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for peer in [p for p in self._peers.values() if not p.authenticated and p.deadline <= now]:
            self._drop(peer)

    def _send(self, peer: _Peer, message: dict[str, Any]) -> None:
        try:
            peer.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # disconnected, or not reading responses
            self._drop(peer)

    def _read(self, peer: _Peer) -> None:
        if peer.connection not in self._peers:
            return
        try:
            data = peer.connection.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(peer)
            return
        peer.buffer += data
        if self._key:
            self._read_lines(peer)
            if not data:
                self._drop(peer)
        elif not data:
            self._drop(peer)
            self._read_object(peer.buffer)
        if len(peer.buffer) > MAX_COMMAND_BYTES:
            self._drop(peer)

    def _read_object(self, text: bytes) -> None:
        """Version 1: handle the data of a connection that the client has closed."""
        if not text.strip():
            return  # a port scan or a health probe
        try:
            command = json.loads(text.decode())
            if not isinstance(command, dict):
                raise ValueError("not an object")
        except ValueError as error:
            log.warning("Communication port: ignored %s bytes that are not a command: %s", len(text), error)
            return
        self._obey(command)

    def _read_lines(self, peer: _Peer) -> None:
        """Version 2: every complete line is one authenticated command."""
        *lines, peer.buffer = peer.buffer.split(b"\n")
        for line in lines:
            command = self._authenticated(peer, line)
            if command is None:
                self._send(peer, {"seq": peer.sequence + 1, "ok": False, "error": "the command is not authentic"})
                self._drop(peer)
                return
            answer: dict[str, Any] = {"seq": peer.sequence, "ok": True}
            try:
                self._obey(command)
            except ProcessLookupError:
                self._end()  # closing the connection is the response
                return
            except (ValueError, OSError) as error:
                answer.update(ok=False, error=str(error))
            self._send(peer, answer)

    def _authenticated(self, peer: _Peer, line: bytes) -> dict[str, Any] | None:
        """Return the command of an authentic line, otherwise None."""
        assert self._key
        try:
            message = json.loads(line.decode())
            sequence, text, mac = message["seq"], message["command"], message["mac"]
            signed = f"{peer.challenge}.{sequence}.{text}".encode()
            expected = hmac.new(self._key, signed, hashlib.sha256).hexdigest()
            if sequence != peer.sequence + 1 or not hmac.compare_digest(expected.encode(), mac.encode()):
                raise ValueError("wrong sequence or MAC")
            command = json.loads(text)
            if not isinstance(command, dict):
                raise ValueError("not an object")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("Communication port: ignored a command that is not authentic: %r", error)
            return None
        peer.sequence = sequence
        return command

    def _obey(self, command: dict[str, Any]) -> None:
        if "signum" in command:
            signum = command["signum"]
            if not isinstance(signum, int) or isinstance(signum, bool) or signum not in self.allowed_signals:
                raise ValueError(f"signal {signum!r} is not allowed")
            self._process.send_signal(signum)
            if signum == signal.SIGINT and self._cancels_spark_jobs:
                # Two simultaneous signals may both be delivered to a thread other than the main thread, whose system
                # call then continues undisturbed (seen on Linux in half of the cases).
                time.sleep(0.05)
                self._process.send_signal(signal.SIGUSR2)
        if command.get("shutdown"):
            self._end()


def fork_listener(server: socket.socket, secret: bytes | None, cancels_spark_jobs: bool, path: str) -> None:
    """Serve the communication port in a separate process, which ends together with this one.

    It is a process, because interrupts must work while the kernel holds the interpreter lock. It is forked twice, so
    that it is not a child that user code could wait for or kill, and leads its own session, so that it survives
    signals to the kernel's group. Must be called before any thread is started.
    """
    process = KernelProcess(os.getpid())
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        server.close()
        process.close()
        return
    try:
        os.setsid()
        if os.fork() == 0:
            run_listener(server, process, secret, cancels_spark_jobs, path)
    except BaseException:
        log.exception("The listener of the communication port failed")
    finally:
        os._exit(0)


def run_listener(
    server: socket.socket, process: KernelProcess, secret: bytes | None, cancels_spark_jobs: bool, path: str
) -> None:
    """Serve until the kernel's end or a shutdown command, then make sure that the connection file is removed."""
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    Listener(server, process, secret, cancels_spark_jobs).serve()
    end = time.monotonic() + SILENCE_SECONDS
    while process.alive() and time.monotonic() < end:
        time.sleep(LIVENESS_SECONDS / 5)
    if not process.alive():
        remove_connection_file(path)


def lead_process_group() -> None:
    """Become the leader of a process group, so that a kill reaches the kernel's children but no other processes.

    Not under YARN or as a child of Spark's JVM, because these kill their children by process group.
    """
    if os.getpgrp() == os.getpid() or "CONTAINER_ID" in os.environ or "PYSPARK_GATEWAY_PORT" in os.environ:
        return
    try:
        os.setsid()
    except OSError as error:
        log.debug("Could not create a process group: %s", error)


# -- variables for user code ---------------------------------------------------------------------------------------


class _Placeholder:
    """Placeholder of a Spark variable; its first use creates the variable."""

    def __init__(self, name: str, variables: SparkVariables) -> None:
        self.__dict__["_placeholder"] = (name, variables)

    def __getattr__(self, attribute: str) -> Any:
        # Inspection by displays and completers does not count as use: it must not start a Spark application.
        if attribute.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(attribute)
        name, variables = self.__dict__["_placeholder"]
        return getattr(variables.get(name), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        name, variables = self.__dict__["_placeholder"]
        setattr(variables.get(name), attribute, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name, variables = self.__dict__["_placeholder"]
        return variables.get(name)(*args, **kwargs)

    def __repr__(self) -> str:
        return "<{}: made when it is used first>".format(self.__dict__["_placeholder"][0])


class SparkVariables:
    """``spark``, ``sc``, ``sql``, ``sqlContext`` and ``sqlCtx`` in the user's namespace.

    A thread creates the session: at once (eager), or when a cell that names one of the variables is about to run or a
    placeholder is used (lazy). After a failure the next cell retries.
    """

    def __init__(self) -> None:
        self.placeholders = {name: _Placeholder(name, self) for name in SPARK_NAMES}
        self._namespace: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._done: threading.Event | None = None

    def start(self) -> threading.Event:
        """Begin to create the session, unless that has begun; return the event that is set at its end."""
        with self._lock:
            if self._done is None or (self._done.is_set() and self._error is not None and not self._values):
                self._done = threading.Event()
                self._error = None
                threading.Thread(target=self._make, args=(self._done,), name="spark", daemon=True).start()
            return self._done

    def get(self, name: str) -> Any:
        """Return the value of a variable, waiting for it (interruptibly)."""
        (self._done or self.start()).wait()
        if name not in self._values:
            raise RuntimeError(f"Variable: {name} was not initialized properly.") from self._error
        return self._values[name]

    def attach(self, shell: Any) -> None:
        """Put the variables into the shell's namespace."""
        self._namespace = shell.user_ns
        self._namespace.update(self.placeholders)
        self._publish()

        def before_cell(info: Any) -> None:
            if any(self._namespace.get(n) is p for n, p in self.placeholders.items()) and names_spark(shell, info):
                self.start().wait()

        shell.events.register("pre_run_cell", before_cell)

    def _publish(self) -> None:
        for name, value in self._values.items():
            if self._namespace.get(name) is self.placeholders[name]:
                self._namespace[name] = value

    def _make(self, done: threading.Event) -> None:
        try:
            from pyspark.sql import SparkSession

            spark = SparkSession.builder.getOrCreate()
            self._values.update(spark=spark, sql=spark.sql)
            atexit.register(spark.stop)
            self._values["sc"] = spark.sparkContext
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SQLContext is deprecated, but old notebooks use it
                from pyspark.sql import SQLContext

                self._values["sqlContext"] = self._values["sqlCtx"] = SQLContext(spark.sparkContext, spark)
        except BaseException as error:
            self._error = error
            log.error("The Spark session could not be created: %s", error)
        finally:
            self._publish()
            done.set()
        self._reap_jvm()

    def _reap_jvm(self) -> None:
        """Reap Spark's JVM, because ipykernel's shutdown waits for its children, even for zombies."""
        gateway = getattr(getattr(sys.modules.get("pyspark"), "SparkContext", None), "_gateway", None)
        process = getattr(gateway, "proc", None)
        if process is not None:
            process.wait()


def names_spark(shell: Any, info: Any) -> bool:
    """Whether a cell's code names one of the Spark variables."""
    try:
        tree = ast.parse(shell.transform_cell(info.raw_cell))
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.Name) and node.id in SPARK_NAMES for node in ast.walk(tree))


def cancel_spark_jobs(_signum: int, _frame: Any) -> None:
    """Cancel all Spark jobs (signal handler).

    Runs in a thread, because the main thread may be in the middle of a call on the same connection to the JVM.
    """

    def cancel() -> None:
        context = getattr(sys.modules.get("pyspark"), "SparkContext", None)
        active = context and context._active_spark_context
        for _ in range(2 if active else 0):
            try:
                active.cancelAllJobs()
                return
            except Exception as error:
                log.warning("Spark jobs could not be cancelled: %s", error)

    threading.Thread(target=cancel, name="cancel-spark-jobs", daemon=True).start()


def cluster_variables(options: argparse.Namespace) -> tuple[dict[str, Any], SparkVariables | None]:
    """Return the variables that the cluster type provides to user code, and the Spark variables if there are any."""
    if options.cluster_type == "dask":
        try:
            from dask_yarn import YarnCluster
        except ImportError as error:
            raise LaunchError(f"cluster type dask needs package dask-yarn: {error}") from error
        try:
            cluster = YarnCluster.from_current()
        except Exception as error:
            raise LaunchError(f"there is no Dask cluster to connect to: {error}") from error
        atexit.register(cluster.close)
        return {"cluster": cluster}, None
    if options.cluster_type == "none":
        return {}, None
    try:
        from importlib.util import find_spec

        if find_spec("pyspark") is None:
            raise ImportError("No module named 'pyspark'")
    except ImportError as error:
        log.warning("There will be no Spark session: %s", error)
        return {}, None
    variables = SparkVariables()
    if options.spark_context_initialization_mode == "eager":
        variables.start()
    return {}, variables


# -- the kernel -------------------------------------------------------------------------------------------------------


def curve_keys(mode: str, problem: str = "") -> tuple[bytes, bytes] | None:
    """Return a new CurveZMQ key pair if encryption is requested and there is no ``problem`` with the kernel.

    Raises
    ------
    LaunchError
        Encryption is required, and the kernel or libzmq cannot do it.
    """
    if mode == "disabled":
        return None
    if not problem:
        import zmq

        if zmq.has("curve"):
            return zmq.curve_keypair()
        problem = "libzmq was built without CURVE"
    if mode == "required":
        raise LaunchError(f"transport encryption is required, but {problem}")
    log.warning("The kernel's messages will not be encrypted: %s", problem)
    return None


def import_kernel_class(name: str) -> Any:
    """Return the kernel's class.

    Raises
    ------
    LaunchError
        ipykernel is missing, or ``name`` does not name a kernel class.
    """
    try:
        from ipykernel.kernelbase import Kernel
        from traitlets.utils.importstring import import_item
    except ImportError as error:
        raise LaunchError(f"package ipykernel is needed: {error}") from error
    try:
        kernel_class = import_item(name)
        if not issubclass(kernel_class, Kernel):
            raise TypeError("not a subclass of ipykernel.kernelbase.Kernel")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise LaunchError(f"kernel class {name} cannot be used: {error}") from error
    return kernel_class


class ReportingKernelApp:
    """Mix-in for ipykernel's application, which keeps to a port range and reports the bound ports.

    A mix-in, because ipykernel is only imported after the listener was forked; see :func:`kernel_application`.
    """

    launch: Launch

    def init_connection_file(self) -> None:
        """Set mandatory values; called after the user's configuration was read, so these take precedence."""
        self.ip, self.transport = "0.0.0.0", "tcp"
        self.connection_file = self.launch.path
        self.kernel_class = self.launch.kernel_class
        self.parent_handle = 0  # the process that launched us may end at once, and we keep running
        self.session.key = secrets.token_hex(32).encode()
        self.session.signature_scheme = "hmac-sha256"
        if self.launch.curve:
            self.curve_publickey, self.curve_secretkey = self.launch.curve
        for name in CHANNEL_PORTS:
            setattr(self, name, 0)
        atexit.register(remove_connection_file, self.launch.path)

    def _bind_socket(self, bound: Any, _port: int) -> int:
        import zmq

        host = self.launch.address
        if ":" in host:
            self.context.setsockopt(zmq.IPV6, 1)  # for later sockets, which connect to this one
            bound.setsockopt(zmq.IPV6, 1)
            host = f"[{host}]"

        def bind(candidate: int) -> int:
            bound.bind(f"tcp://{host}:{candidate or '*'}")
            return int(bound.getsockopt(zmq.LAST_ENDPOINT).rpartition(b":")[2].rstrip(b"\0"))

        return self.launch.ports.bind(bind)

    def init_heartbeat(self) -> None:
        """Bind the heartbeat's port here, because ipykernel's thread binds a port that may no longer be free."""
        import zmq
        from ipykernel.heartbeat import Heartbeat

        context = zmq.Context()  # its own, as in ipykernel: heartbeats must not wait for the interpreter lock
        bound = context.socket(zmq.ROUTER)
        bound.linger = 1000
        if self.launch.curve:
            bound.curve_publickey, bound.curve_secretkey = self.launch.curve
            bound.curve_server = True
        self.hb_port = self._bind_socket(bound, 0)
        self.heartbeat = Heartbeat(context, ("tcp", self.ip, self.hb_port))
        self.heartbeat.run = lambda: beat(bound)
        self.heartbeat.start()

    def write_connection_file(self, **_kwargs: Any) -> None:
        """Write the file and report; called when all ports are bound."""
        info: dict[str, Any] = {name: getattr(self, name) for name in CHANNEL_PORTS}
        info.update(connection_basics(self.session.key.decode()))
        if self.launch.curve:
            public, secret = self.launch.curve
            info.update(curve_publickey=public.decode(), curve_secretkey=secret.decode())
        write_connection_file(self.launch.path, info)
        if self.launch.report:
            self.launch.report(info)

    def log_connection_info(self) -> None:
        """Record the ports, without ipykernel's output for users at a terminal."""
        self._ports = {name[: -len("_port")]: getattr(self, name) for name in CHANNEL_PORTS}


def beat(bound: Any) -> None:
    """Answer heartbeats until the socket's context ends."""
    import zmq

    while True:
        try:
            zmq.proxy(bound, bound)
        except zmq.ZMQError as error:
            if error.errno != errno.EINTR:
                break
    bound.close(linger=0)


class Launch(NamedTuple):
    """The parameters of the launch for the kernel's application."""

    path: str
    kernel_class: Any
    ports: PortRange
    address: str
    curve: tuple[bytes, bytes] | None
    report: Callable[[dict[str, Any]], None] | None


def kernel_application(options: argparse.Namespace, path: str, report: Callable[[dict[str, Any]], None] | None) -> Any:
    """Return ipykernel's application, which binds its ports and then reports them."""
    kernel_class = import_kernel_class(options.kernel_class_name)
    import ipykernel
    from ipykernel.kernelapp import IPKernelApp

    # The application's traits do not tell, because jupyter_client adds them even to an ipykernel that ignores them.
    can_encrypt = ipykernel.version_info[:2] >= (7, 3)
    curve = curve_keys(options.transport_encryption, "" if can_encrypt else "ipykernel 7.3 or later is needed")
    app_class: Any = type("ReportingKernelApp", (ReportingKernelApp, IPKernelApp), {})
    app = app_class.instance()
    app.launch = Launch(path, kernel_class, PortRange(options.port_range), bind_address(options), curve, report)
    return app


def connection_basics(key: str) -> dict[str, Any]:
    """Return the entries of the connection information that are not ports."""
    return {
        "ip": "0.0.0.0",
        "key": key,
        "transport": "tcp",
        "signature_scheme": "hmac-sha256",
        "kernel_name": os.environ.get("KERNEL_NAME", ""),
    }


class Reporter:
    """Reports the kernel's connection information to the gateway."""

    def __init__(self, options: argparse.Namespace, secret: bytes | None, pid: int, comm_port: int) -> None:
        self._address = parse_response_address(options.response_address)
        self._public_key = options.public_key
        self._secret = secret
        self._extra = {"kernel_id": options.kernel_id, "pid": pid, "pgid": os.getpgid(pid), "comm_port": comm_port}
        if secret:
            self._extra["comm_version"] = 2

    def __call__(self, info: dict[str, Any]) -> None:
        """Send ``info`` with the launcher's own entries; raise LaunchError if it cannot be delivered."""
        secret, self._secret = self._secret, None  # user code must not find it
        send_report(self._address, encode_payload(dict(info, **self._extra), self._public_key, secret))


def launch_kernel(options: argparse.Namespace, path: str, secret: bytes | None) -> None:
    """Run the kernel in this process until it ends."""
    lead_process_group()
    uses_spark = options.cluster_type == "spark"
    if uses_spark:
        signal.signal(signal.SIGUSR2, cancel_spark_jobs)
    report: Callable[[dict[str, Any]], None] | None = None
    if options.response_address:
        server = bound_socket(PortRange(options.port_range), bind_address(options))
        server.listen(128)
        report = Reporter(options, secret, os.getpid(), server.getsockname()[1])
        fork_listener(server, secret, uses_spark, path)
    del secret
    variables, spark = cluster_variables(options)
    app = kernel_application(options, path, report)
    app.initialize(argv=[])
    if app.shell is not None:
        app.shell.user_ns.update(variables)
        if spark is not None:
            spark.attach(app.shell)
    app.start()


def serve_other_kernel(options: argparse.Namespace, path: str, secret: bytes | None) -> None:
    """Choose the ports of the kernel of process ``--parent-pid``, report them, and serve its communication port."""
    curve_keys(options.transport_encryption, "this kernel cannot encrypt its messages")
    process = KernelProcess(options.parent_pid)
    ports, address = PortRange(options.port_range), bind_address(options)
    held = [bound_socket(ports, address) for _ in CHANNEL_PORTS]  # until the kernel is about to bind them
    info: dict[str, Any] = {name: bound.getsockname()[1] for name, bound in zip(CHANNEL_PORTS, held)}
    info.update(connection_basics(secrets.token_hex(32)))
    server = bound_socket(ports, address)
    if options.response_address:
        server.listen(128)
        Reporter(options, secret, options.parent_pid, server.getsockname()[1])(info)
    for bound in held:
        bound.close()
    write_connection_file(path, info)
    if not options.response_address:
        return
    if os.getpgrp() != os.getpid():
        os.setsid()  # survive signals to the kernel's group, to clean up after it
    run_listener(server, process, secret, cancels_spark_jobs=False, path=path)


def fail(message: str, path: str = "") -> NoReturn:
    """End the process with one clear line, regardless of other threads."""
    if path:
        remove_connection_file(path)
    stream = log.handlers[0].stream if log.handlers else sys.stderr  # type: ignore[attr-defined]
    stream.write(f"launch_ipykernel: {message}\n")
    stream.flush()
    os._exit(1)


def main() -> None:
    """Run the command line."""
    configure_logging()
    path = ""
    try:
        if not hasattr(os, "fork"):
            raise LaunchError("a POSIX system is needed")
        options = parse_arguments()
        path = connection_file_path(options)
        (serve_other_kernel if options.listener_only else launch_kernel)(options, path, take_secret())
    except LaunchError as error:
        fail(str(error), path)
    except Exception as error:
        log.debug("The launch failed", exc_info=True)
        fail(f"{type(error).__name__}: {error}", path)


if __name__ == "__main__":
    main()
