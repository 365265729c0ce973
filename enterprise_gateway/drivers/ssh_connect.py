"""Making SSH connections: credentials, host keys, and errors that say what is wrong.

With :mod:`.ssh_shell` the only user of paramiko.
"""

from __future__ import annotations

import inspect
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import envvars
from ..core.deadline import Deadline
from ..core.errors import HostAuthenticationError, HostUnreachableError

if TYPE_CHECKING:
    import paramiko

KEEPALIVE_SECONDS = 30
_DEAD_PEER_SECONDS = 20
_IDLE_SECONDS = 5.0  # paramiko's reading thread would wake up ten times a second; hang_up() does not wait for it


@dataclass(frozen=True)
class SSHSettings:
    """How SSH hosts are reached; made by :meth:`from_environment` when the first connection is wanted."""

    port: int = 22
    user: str = ""
    password: str = field(default="", repr=False)
    gss: bool = False
    key_files: tuple[str, ...] = ()
    known_hosts: tuple[str, ...] = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
    host_key_policy: str = "reject"
    connect_timeout: float = 10.0

    @classmethod
    def from_environment(cls) -> SSHSettings:
        """Read the settings of the gateway's process (``EG_SSH_*``, ``EG_REMOTE_*``)."""
        return cls(
            port=envvars.EG_SSH_PORT(),
            user=envvars.EG_REMOTE_USER(),
            password=envvars.EG_REMOTE_PWD() or "",
            gss=envvars.EG_REMOTE_GSS_SSH(),
            key_files=envvars.EG_SSH_KEY_FILES(),
            known_hosts=envvars.EG_SSH_KNOWN_HOSTS(),
            host_key_policy=envvars.EG_SSH_HOST_KEY_POLICY(),
            connect_timeout=envvars.EG_SSH_CONNECT_TIMEOUT(),
        )


def connect(host: str, user: str, settings: SSHSettings, deadline: Deadline) -> paramiko.SSHClient:
    """Return a connected and authenticated client; called by :class:`.ssh_shell.SSHShell`.

    Raises
    ------
    HostUnreachableError
        There is no SSH server, or it did not answer in time.
    HostAuthenticationError
        The host refused us, or its key is not the known one.
    """
    import paramiko

    key_files = [os.path.expanduser(name) for name in settings.key_files]
    seconds = min(settings.connect_timeout, max(deadline.remaining, 0.01))
    client = paramiko.SSHClient()
    sock = _dial(host, settings.port, seconds)
    try:
        _trust(client, settings)
        client.connect(
            host,
            settings.port,
            user,
            settings.password or None,
            key_filename=key_files or None,  # type: ignore[arg-type]  # a list is documented, the stubs forget it
            look_for_keys=not settings.key_files,
            allow_agent=not settings.key_files,
            sock=sock,
            timeout=seconds,
            banner_timeout=seconds,
            auth_timeout=seconds,
            transport_factory=_transport_factory,  # type: ignore[arg-type]  # the stubs ask for GSS parameters
            **_gss_options(settings),
        )
    except BaseException as error:
        translated = _translate(error, client, host, user)
        if (transport := client.get_transport()) is not None:
            hang_up(transport)
        client.close()
        sock.close()
        if translated is error:
            raise
        raise translated from error
    transport_of(client).set_keepalive(KEEPALIVE_SECONDS)
    return client


def transport_of(client: paramiko.SSHClient) -> paramiko.Transport:
    """Return the transport of a connected client."""
    transport = client.get_transport()
    assert transport is not None, "a connected client has a transport"
    return transport


def hang_up(transport: paramiko.Transport) -> None:
    """End a connection at once, whatever state it is in; its channels are closed."""
    with suppress(OSError):
        transport.sock.shutdown(socket.SHUT_RDWR)
    transport.join(1.0)  # its thread sees the end; closing the socket under it would have it wait for the next time-out
    transport.close()


def _dial(host: str, port: int, seconds: float) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), timeout=seconds)
    except socket.gaierror as error:
        raise HostUnreachableError(f"{host}: the name cannot be resolved") from error
    except TimeoutError as error:
        raise HostUnreachableError(f"{host}: port {port} did not answer within {seconds:g} seconds") from error
    except OSError as error:
        raise HostUnreachableError(f"{host}: port {port}: {(error.strerror or str(error)).lower()}") from error
    # A host that vanishes sends no goodbye: have the system find out, also while nothing is being sent.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _DEAD_PEER_SECONDS // 2),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", _DEAD_PEER_SECONDS * 1000),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


def _transport_factory(sock: socket.socket, **options: Any) -> paramiko.Transport:
    """Make a transport that prefers the ciphers which OpenSSL does fastest."""
    import paramiko

    transport = paramiko.Transport(sock, **options)
    sock.settimeout(_IDLE_SECONDS)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    return transport


def _trust(client: paramiko.SSHClient, settings: SSHSettings) -> None:
    files = [Path(name).expanduser() for name in settings.known_hosts]
    client.set_missing_host_key_policy(
        _UnknownHostKey(settings.host_key_policy, files[0] if files else None)  # type: ignore[arg-type]  # a protocol
    )
    if settings.host_key_policy != "ignore":
        for path in files:
            if path.exists():
                client.load_system_host_keys(str(path))


class _UnknownHostKey:
    """Decides on a host of which no key is known."""

    def __init__(self, policy: str, file: Path | None) -> None:
        self._policy = policy
        self._file = file

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        if self._policy == "reject":
            raise HostAuthenticationError(
                f"{hostname}: its {key.get_name()} host key ({key.fingerprint}) is not known; check it and add it to "
                f"{self._file} (ssh-keyscan), or see EG_SSH_HOST_KEY_POLICY"
            )
        if self._policy == "accept-new" and self._file is not None:
            with _known_hosts_lock:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self._file.open("a") as known_hosts:
                    known_hosts.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")


_known_hosts_lock = threading.Lock()


def _gss_options(settings: SSHSettings) -> dict[str, Any]:
    """Return what makes paramiko authenticate by Kerberos, where it can."""
    import paramiko

    if not settings.gss:
        return {}
    if "gss_auth" not in inspect.signature(paramiko.SSHClient.connect).parameters:
        raise HostAuthenticationError(
            f"EG_REMOTE_GSS_SSH is set, but paramiko {paramiko.__version__} has no GSS-API: "
            "install 'paramiko<5' and gssapi, or use keys"
        )
    # Whether the DNS is believed is for krb5.conf to say: paramiko would ask it, without a time limit.
    return {"gss_auth": True, "gss_deleg_creds": True, "gss_trust_dns": False}


def _translate(error: BaseException, client: paramiko.SSHClient, host: str, user: str) -> BaseException:
    """Return the error of ours that says what ``error`` means; anything not understood is returned as it is."""
    import paramiko

    transport = client.get_transport()
    if isinstance(error, paramiko.BadHostKeyException):
        return HostAuthenticationError(
            f"{host}: its host key ({error.key.fingerprint}) is not the known one; if the host was installed anew, "
            "correct known_hosts"
        )
    if isinstance(error, FileNotFoundError | PermissionError):
        return HostAuthenticationError(f"{host}: key file {error.filename}: {(error.strerror or '').lower()}")
    if isinstance(error, ImportError):
        return HostAuthenticationError(f"{host}: Kerberos needs the Python package gssapi: {error}")
    if isinstance(error, getattr(paramiko, "GSS_EXCEPTIONS", ())):  # no SSHExceptions; paramiko 5 has none
        return HostAuthenticationError(f"{host}: Kerberos: {error}")
    is_connected = transport is not None and transport.is_active() and transport.initial_kex_done
    if isinstance(error, paramiko.SSHException) and is_connected:
        return HostAuthenticationError(f"{host}: user {user} was refused ({error})")
    if isinstance(error, paramiko.AuthenticationException):
        return HostAuthenticationError(f"{host}: user {user} was refused ({error})")
    if isinstance(error, paramiko.SSHException | EOFError | OSError):
        return HostUnreachableError(f"{host}: no SSH connection ({str(error) or type(error).__name__})")
    return error
