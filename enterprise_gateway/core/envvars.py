"""The environment variables that configure the gateway, in one table; the only reader of ``os.environ``.

Each is declared once, with its legacy aliases, type, default and meaning, and read when it is used, never at import.
``docs`` are generated from :data:`TABLE`. A variable that belongs to an option of the application is only that
option's default: the option is what the rest of the code reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
D = TypeVar("D")
NumberT = TypeVar("NumberT", int, float)

TABLE: dict[str, EnvVar] = {}  # type: ignore[type-arg]

NOT_READ = "This version does not read it: the back end that it is for is still to come."


@dataclass(frozen=True)
class Number(Generic[NumberT]):
    """Parses a number within bounds, both inclusive."""

    kind: type[NumberT]
    minimum: NumberT
    maximum: NumberT | None = None

    def __call__(self, text: str) -> NumberT:
        """Return the number, or raise a ValueError that says what is expected."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self.minimum <= value <= (value if self.maximum is None else self.maximum):
            name = "whole number" if self.kind is int else "number"
            bounds = f"of at least {self.minimum}" if self.maximum is None else f"from {self.minimum} to {self.maximum}"
            raise ValueError(f"expected a {name} {bounds}")
        return value


@dataclass(frozen=True)
class EnvVar(Generic[T]):
    """One environment variable: call it to read its present value.

    ``names`` are tried in order: the first one set wins. ``parse`` turns text into the value and raises ValueError
    for text it cannot use. A blank text for a number counts as not set: templates (Helm, Compose) render unset
    values so. ``group`` is the heading under which the documentation lists the variable, ``option`` the
    application's option whose default it is, if any. ``is_read`` is False as long as the back end that it is for does
    not exist; then :data:`NOT_READ` is said wherever it is documented.
    """

    names: tuple[str, ...]
    parse: Callable[[str], T]
    default: T
    help: str
    group: str = ""
    option: str = ""
    is_read: bool = True

    @property
    def name(self) -> str:
        """The name to use today; the others are legacy."""
        return self.names[0]

    def __call__(self, environ: Mapping[str, str] | None = None) -> T:
        """Return the parsed value, or the default when none of the names is set.

        Raises
        ------
        ValueError
            Names the variable and the text it cannot use.
        """
        environ = os.environ if environ is None else environ
        for name in self.names:
            if name not in environ or (isinstance(self.parse, Number) and not environ[name].strip()):
                continue
            try:
                return self.parse(environ[name])
            except ValueError as error:
                raise ValueError(f"{name}={environ[name]!r}: {error}") from error
        return self.default


def declare(
    name: str,
    parse: Callable[[str], T],
    default: D,
    help: str,
    *legacy: str,
    group: str = "",
    option: str = "",
    is_read: bool = True,
) -> EnvVar[T | D]:
    """Add a variable to the table, which must not have it yet, and return it."""
    if name in TABLE:
        raise KeyError(f"{name} is declared twice")
    text = help if is_read else f"{help} {NOT_READ}"
    variable: EnvVar[T | D] = EnvVar((name, *legacy), parse, default, text, group, option, is_read)
    TABLE[name] = variable
    return variable


def for_option(
    option: str, parse: Callable[[str], T], default: D, *legacy: str, name: str = "", is_read: bool = True
) -> EnvVar[T | D]:
    """Declare the variable that sets an option's default; it is called EG_<OPTION> unless ``name`` says otherwise."""
    name = name or f"EG_{option.upper()}"
    text = f"Sets the default of the option {option}."
    return declare(name, parse, default, text, *legacy, option=option, is_read=is_read)


def check() -> None:
    """Parse every variable that is set; the application calls this when it starts.

    Raises
    ------
    ValueError
        Names each variable whose text cannot be used, one a line.
    """
    problems = []
    for variable in TABLE.values():
        try:
            variable()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def process_environment() -> dict[str, str]:
    """Return a copy of the gateway's own environment."""
    return dict(os.environ)


def boolean(text: str) -> bool:
    """Parse the words that operators use for yes and no."""
    word = text.strip().lower()
    if word in {"1", "true", "t", "yes", "y", "on"}:
        return True
    if word in {"", "0", "false", "f", "no", "n", "off"}:
        return False
    raise ValueError("expected true or false")


def optional_boolean(text: str) -> bool | None:
    """Parse yes and no like :func:`boolean`; a blank text is neither."""
    return boolean(text) if text.strip() else None


def comma_list(text: str) -> tuple[str, ...]:
    """Split a comma list; blanks around entries and empty entries are dropped."""
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def optional_text(text: str) -> str | None:
    """Return the text without the blanks around it, or None for a blank text."""
    return text.strip() or None


def id_list(text: str) -> tuple[int, ...]:
    """Parse a comma list of user or group ids; the error names the bad entry."""
    ids = []
    for entry in comma_list(text):
        try:
            ids.append(int(entry))
        except ValueError as error:
            raise ValueError(f"{entry!r} is not a valid integer") from error
    return tuple(ids)


def name_list(text: str) -> tuple[str, ...]:
    """Parse names as the container start script takes them: quoted or not, in brackets or not; ``null`` is none."""
    names = (name.strip(" '\"") for name in comma_list(text.strip(" '\"[]")))
    return tuple(name for name in names if name not in {"", "null"})


def word_of(*words: str) -> Callable[[str], str]:
    """Return a parser that accepts one of ``words``, whatever its case."""

    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return word

    return parse


def log_level(text: str) -> int:
    """Parse the name or the number of a log level."""
    levels = {"CRITICAL": 50, "FATAL": 50, "ERROR": 40, "WARNING": 30, "WARN": 30, "INFO": 20, "DEBUG": 10}
    word = text.strip().upper()
    if word.isdigit():
        return int(word)
    if word not in levels:
        raise ValueError(f"expected a number or one of {', '.join(levels)}")
    return levels[word]


def certificate_bundle(text: str) -> bool | str:
    """Parse whether, or with which file of authorities, certificates are verified."""
    try:
        return boolean(text) if text.strip() else True
    except ValueError:
        return text.strip()


@dataclass(frozen=True)
class Choice:
    """Parses one of a few words, whatever their case; a blank text is the ``blank`` word, if there is one."""

    words: tuple[str, ...]
    blank: str | None = None

    def __call__(self, text: str) -> str:
        """Return the word as it is written in ``words``."""
        word = text.strip() or self.blank or ""
        for known in self.words:
            if known.lower() == word.lower():
                return known
        raise ValueError(f"expected one of {', '.join(self.words)}")


_port_number = Number(int, 0, 65535)
_count = Number(int, 0)
_size = Number(int, 1)
_seconds = Number(float, 0.0)

# -- Defaults of options: what each means stands with the option, in enterprise_gateway.config and at the managers.

EG_PORT = for_option("port", _port_number, 8888, "KG_PORT")
EG_PORT_RETRIES = for_option("port_retries", _count, 50, "KG_PORT_RETRIES")
EG_IP = for_option("ip", str, "127.0.0.1", "KG_IP")
EG_BASE_URL = for_option("base_url", str, "/", "KG_BASE_URL")
EG_TRUST_XHEADERS = for_option("trust_xheaders", boolean, False, "KG_TRUST_XHEADERS")
EG_ALLOWED_HOSTS = for_option("allowed_hosts", comma_list, ())
EG_WS_PING_INTERVAL_SECS = for_option("ws_ping_interval", _count, 30, name="EG_WS_PING_INTERVAL_SECS")
EG_WS_PING_TIMEOUT_SECS = for_option("ws_ping_timeout", _count, 0, name="EG_WS_PING_TIMEOUT_SECS")
EG_WS_MAX_MESSAGE_SIZE = for_option("ws_max_message_size", _size, 100 * 1024 * 1024)
EG_MAX_BODY_SIZE = for_option("max_body_size", _size, 1 << 20)
EG_MAX_CONNECTIONS = for_option("max_connections", _count, 0)
EG_MAX_PENDING_CONNECTIONS = for_option("max_pending_connections", _size, 4096)
EG_MAX_PENDING_CONNECTIONS_PER_ADDRESS = for_option("max_pending_connections_per_address", _size, 2048)
EG_WS_QUEUE_LIMIT = for_option("ws_queue_limit", _size, 32 * 1024 * 1024)
EG_WS_RECEIVE_LIMIT = for_option("ws_receive_limit", _size, 1024 * 1024 * 1024)
EG_WS_MESSAGE_RATE = for_option("ws_message_rate", _count, 2_000)
EG_WS_USER_MESSAGE_RATE = for_option("ws_user_message_rate", _count, 10_000)
EG_WS_SPLIT_SIZE = for_option("ws_split_size", _count, 10_000_000)
EG_REPLAY_LIMIT = for_option("replay_limit", _count, 10 * 1024 * 1024)
EG_REPLAY_TOTAL_LIMIT = for_option("replay_total_limit", _count, 1024 * 1024 * 1024)
EG_REPLAY_USER_SESSIONS = for_option("replay_user_sessions", _count, 10_000)

EG_AUTH_TOKEN = for_option("auth_token", str, "", "KG_AUTH_TOKEN")
EG_ALLOW_CREDENTIALS = for_option("allow_credentials", str, "", "KG_ALLOW_CREDENTIALS")
EG_ALLOW_HEADERS = for_option("allow_headers", str, "", "KG_ALLOW_HEADERS")
EG_ALLOW_METHODS = for_option("allow_methods", str, "", "KG_ALLOW_METHODS")
EG_ALLOW_ORIGIN = for_option("allow_origin", str, "", "KG_ALLOW_ORIGIN")
EG_EXPOSE_HEADERS = for_option("expose_headers", str, "", "KG_EXPOSE_HEADERS")
EG_MAX_AGE = for_option("max_age", str, "", "KG_MAX_AGE")
EG_AUTHORIZED_ORIGIN = for_option("authorized_origin", str, "")
EG_AUTHORIZER_CLASS = for_option("authorizer_class", str, "jupyter_server.auth.authorizer.AllowAllAuthorizer")

EG_CERTFILE = for_option("certfile", optional_text, None, "KG_CERTFILE")
EG_KEYFILE = for_option("keyfile", optional_text, None, "KG_KEYFILE")
EG_CLIENT_CA = for_option("client_ca", optional_text, None, "KG_CLIENT_CA")
EG_SSL_VERSION = for_option("ssl_version", _count, None, "KG_SSL_VERSION")

EG_MAX_KERNELS = for_option("max_kernels", _count, None, "KG_MAX_KERNELS")
EG_MAX_KERNELS_PER_USER = for_option("max_kernels_per_user", Number(int, -1), -1)
EG_DEFAULT_KERNEL_NAME = for_option("default_kernel_name", str, "", "KG_DEFAULT_KERNEL_NAME")
EG_LIST_KERNELS = for_option("list_kernels", boolean, False, "KG_LIST_KERNELS")
EG_KERNELSPEC_CACHE_ENABLED = for_option(
    "KernelSpecCache.cache_enabled", boolean, True, name="EG_KERNELSPEC_CACHE_ENABLED"
)
EG_CULL_IDLE_TIMEOUT = for_option(
    "RemoteMappingKernelManager.cull_idle_timeout", _count, 0, name="EG_CULL_IDLE_TIMEOUT"
)
EG_CULL_INTERVAL = for_option("RemoteMappingKernelManager.cull_interval", _count, 300, name="EG_CULL_INTERVAL")
EG_CULL_CONNECTED = for_option("RemoteMappingKernelManager.cull_connected", boolean, False, name="EG_CULL_CONNECTED")
EG_CULL_BUSY = for_option("RemoteMappingKernelManager.cull_busy", boolean, False, name="EG_CULL_BUSY")
EG_CULL_MAX_AGE = for_option("RemoteMappingKernelManager.cull_max_age", _seconds, 0.0, name="EG_CULL_MAX_AGE")
EG_CULL_BUSY_TIMEOUT = for_option(
    "RemoteMappingKernelManager.cull_busy_timeout", _seconds, 0.0, name="EG_CULL_BUSY_TIMEOUT"
)
EG_CULL_WARNING = for_option("RemoteMappingKernelManager.cull_warning", _seconds, 0.0, name="EG_CULL_WARNING")
EG_KERNEL_INFO_TIMEOUT = for_option(
    "RemoteMappingKernelManager.kernel_info_timeout", _seconds, 60.0, name="EG_KERNEL_INFO_TIMEOUT"
)

EG_CLIENT_ENVS = for_option("client_envs", comma_list, (), "EG_ENV_WHITELIST")
EG_INHERITED_ENVS = for_option("inherited_envs", comma_list, (), "EG_ENV_PROCESS_WHITELIST")
EG_UNRESTRICTED_CLIENT_ENVS = for_option("unrestricted_client_envs", comma_list, ())
EG_KERNEL_HEADERS = for_option("kernel_headers", comma_list, ())
EG_IMPERSONATION_ENABLED = for_option("impersonation_enabled", boolean, False)
EG_UNAUTHORIZED_USERS = for_option("unauthorized_users", comma_list, ("root",))
EG_AUTHORIZED_USERS = for_option("authorized_users", comma_list, ())

EG_REMOTE_HOSTS = for_option("remote_hosts", comma_list, ("localhost",))
EG_LOAD_BALANCING_ALGORITHM = for_option("load_balancing_algorithm", str, "round-robin")
EG_PORT_RANGE = for_option("port_range", str, "0..0")
EG_TRANSPORT_ENCRYPTION = for_option("transport_encryption", str, "disabled")
EG_ALLOW_PAYLOAD_V1 = for_option("allow_payload_v1", boolean, True)
EG_YARN_ENDPOINT = for_option("yarn_endpoint", optional_text, None, is_read=False)
EG_ALT_YARN_ENDPOINT = for_option("alt_yarn_endpoint", optional_text, None, is_read=False)
EG_YARN_ENDPOINT_SECURITY_ENABLED = for_option("yarn_endpoint_security_enabled", boolean, False, is_read=False)
EG_CONDUCTOR_ENDPOINT = for_option("conductor_endpoint", optional_text, None, is_read=False)

EG_DYNAMIC_CONFIG_INTERVAL = for_option("dynamic_config_interval", _count, 0)
EG_AVAILABILITY_MODE = for_option("availability_mode", optional_text, None)
EG_KEEP_KERNELS_ON_STOP = for_option("keep_kernels_on_stop", optional_boolean, None)
EG_DEPLOYMENT_ID = for_option("deployment_id", str, "")
EG_DRAIN_TIMEOUT = for_option("drain_timeout", Number(float, 0), 20.0)
EG_KERNEL_SESSION_PERSISTENCE = for_option(
    "KernelSessionManager.enable_persistence", boolean, False, name="EG_KERNEL_SESSION_PERSISTENCE"
)
EG_PERSISTENCE_ROOT = for_option(
    "KernelSessionManager.persistence_root", str, "", "EG_KERNEL_SESSION_LOCATION", name="EG_PERSISTENCE_ROOT"
)
EG_SESSION_SEALING_KEY_FILE = for_option(
    "KernelSessionManager.sealing_key_file", str, "", name="EG_SESSION_SEALING_KEY_FILE"
)
EG_SESSION_STORE_TIMEOUT = for_option(
    "KernelSessionManager.store_timeout", Number(float, 0.1), 10.0, name="EG_SESSION_STORE_TIMEOUT"
)
EG_SESSION_DATABASE_URL = for_option("SQLKernelSessionManager.database_url", str, "", name="EG_SESSION_DATABASE_URL")
EG_SESSION_DATABASE_URL_FILE = for_option(
    "SQLKernelSessionManager.database_url_file", str, "", name="EG_SESSION_DATABASE_URL_FILE"
)
EG_WEBHOOK_URL = for_option("WebhookKernelSessionManager.webhook_url", optional_text, None, name="EG_WEBHOOK_URL")
EG_WEBHOOK_USERNAME = for_option(
    "WebhookKernelSessionManager.webhook_username", optional_text, None, name="EG_WEBHOOK_USERNAME"
)
EG_WEBHOOK_PASSWORD = for_option(
    "WebhookKernelSessionManager.webhook_password", optional_text, None, name="EG_WEBHOOK_PASSWORD"
)
EG_AUTH_TYPE = for_option("WebhookKernelSessionManager.auth_type", optional_text, None, name="EG_AUTH_TYPE")

# -- Variables that belong to no option.

_LAUNCH = "Starting and stopping kernels"
EG_KERNEL_LAUNCH_TIMEOUT = declare(
    "EG_KERNEL_LAUNCH_TIMEOUT",
    Number(float, 0.001),
    30.0,
    "Seconds that a kernel may take from the request until it has reported how it is reached. A request's "
    "KERNEL_LAUNCH_TIMEOUT takes precedence.",
    group=_LAUNCH,
)
EG_RESTART_STATUS_POLL_INTERVAL = declare(
    "EG_RESTART_STATUS_POLL_INTERVAL",
    _seconds,
    1.0,
    "Accepted for compatibility, without effect: a restart is reported as soon as it is complete.",
    group=_LAUNCH,
)
EG_MAX_POLL_ATTEMPTS = declare(
    "EG_MAX_POLL_ATTEMPTS",
    _size,
    10,
    "How many times a kernel that was asked to end is checked before it is killed.",
    group=_LAUNCH,
)
EG_POLL_INTERVAL = declare(
    "EG_POLL_INTERVAL",
    _seconds,
    0.5,
    "Seconds between checks of a cluster's state where the cluster does not report changes by itself.",
    group=_LAUNCH,
)
EG_PROHIBITED_UIDS = declare(
    "EG_PROHIBITED_UIDS",
    id_list,
    (0,),
    "User ids (comma list) under which no container kernel is started; such a start is refused with 403.",
    group=_LAUNCH,
    is_read=False,
)
EG_PROHIBITED_GIDS = declare(
    "EG_PROHIBITED_GIDS",
    id_list,
    (0,),
    "Group ids (comma list) under which no container kernel is started; such a start is refused with 403.",
    group=_LAUNCH,
    is_read=False,
)
EG_MIRROR_WORKING_DIRS = declare(
    "EG_MIRROR_WORKING_DIRS",
    boolean,
    False,
    "Whether container kernels start in the client's KERNEL_WORKING_DIR; only useful where the same directories are "
    "mounted into their containers.",
    group=_LAUNCH,
)
EG_SENSITIVE_ENV_KEYS = declare(
    "EG_SENSITIVE_ENV_KEYS",
    comma_list,
    ("AUTH", "CREDENTIAL", "KEY", "PASS", "PWD", "SECRET", "TOKEN"),
    "Parts of names (comma list): the value of an environment variable whose name contains one of them is masked in "
    "the log. A blank text masks nothing.",
    group=_LAUNCH,
)
EG_REDACTION_MASK = declare(
    "EG_REDACTION_MASK", str, "********", "What the log shows in place of a masked value.", group=_LAUNCH
)
EG_ALTERNATE_SIGINT = declare(
    "EG_ALTERNATE_SIGINT",
    optional_text,
    None,
    "Name of the signal that interrupts a kernel in place of SIGINT. It is read from the env stanza of the kernelspec.",
    group=_LAUNCH,
)
EG_LOG_LEVEL = declare(
    "EG_LOG_LEVEL", log_level, 10, "Log level of the kernel launchers, as a name or a number.", group=_LAUNCH
)

EG_KERNEL_OUTPUT_LIMIT = declare(
    "EG_KERNEL_OUTPUT_LIMIT",
    Number(int, 4096),
    1024 * 1024,
    "Bytes kept of a local kernel's or launcher's stdout and stderr outside Jupyter messages: its "
    "first 64 KiB and its last lines. The size is checked every ten seconds, so the file can be larger meanwhile.",
    group=_LAUNCH,
)

EG_ALLOWED_KERNELS = declare(
    "EG_ALLOWED_KERNELS",
    name_list,
    (),
    "Names of the kernelspecs that are offered and may be started, as a comma list or a JSON list; when unset, blank "
    "or null, all are. It sets the default of jupyter_client's option KernelSpecManager.allowed_kernelspecs.",
    "EG_KERNEL_WHITELIST",
    group=_LAUNCH,
)

_RESPONSE = "Where remote kernels report"
EG_RESPONSE_IP = declare(
    "EG_RESPONSE_IP",
    optional_text,
    None,
    "Address at which launchers reach the gateway. When unset, the first local address that EG_PROHIBITED_LOCAL_IPS "
    "does not exclude is used.",
    group=_RESPONSE,
)
EG_RESPONSE_PORT = declare(
    "EG_RESPONSE_PORT", _port_number, 8877, "Port on which the gateway listens for launchers' reports.", group=_RESPONSE
)
EG_RESPONSE_PORT_RETRIES = declare(
    "EG_RESPONSE_PORT_RETRIES",
    _count,
    10,
    "How many other ports are tried when EG_RESPONSE_PORT is taken.",
    group=_RESPONSE,
)
EG_RESPONSE_ADDR_ANY = declare(
    "EG_RESPONSE_ADDR_ANY",
    boolean,
    False,
    "Whether to listen on every local address, while launchers are still told EG_RESPONSE_IP.",
    group=_RESPONSE,
)
EG_PROHIBITED_LOCAL_IPS = declare(
    "EG_PROHIBITED_LOCAL_IPS",
    comma_list,
    (),
    "Regular expressions (comma list) of local addresses that launchers are not told, for example 172\\.17\\..*; each "
    "is matched from the start of the address. None are excluded when it is unset or blank.",
    group=_RESPONSE,
)
EG_ALLOW_PAYLOAD_V0 = declare(
    "EG_ALLOW_PAYLOAD_V0",
    boolean,
    False,
    "Whether reports from launchers older than Enterprise Gateway 2.4 are accepted. They are encrypted with the "
    "kernel id alone: leave it off.",
    group=_RESPONSE,
)
EG_SOCKET_TIMEOUT = declare(
    "EG_SOCKET_TIMEOUT",
    _seconds,
    5.0,
    "Seconds allowed for connecting to a launcher's communication port.",
    group=_RESPONSE,
)
EG_MIN_PORT_RANGE_SIZE = declare(
    "EG_MIN_PORT_RANGE_SIZE",
    _count,
    1000,
    "Fewest ports that a port_range must span; launchers are told too.",
    group=_RESPONSE,
)
EG_MAX_PORT_RANGE_RETRIES = declare(
    "EG_MAX_PORT_RANGE_RETRIES",
    _count,
    5,
    "How many ports of a port_range are tried before giving up; launchers are told too.",
    group=_RESPONSE,
)

_SSH = "SSH hosts"
EG_SSH_PORT = declare("EG_SSH_PORT", _port_number, 22, "Port of the hosts' SSH servers.", group=_SSH)
EG_REMOTE_USER = declare(
    "EG_REMOTE_USER",
    str,
    "",
    "User to log in to the hosts as; when unset, the gateway's own user.",
    group=_SSH,
)
EG_REMOTE_PWD = declare(
    "EG_REMOTE_PWD",
    lambda text: text or None,
    None,
    "Password to log in to the hosts with; when unset, keys are used. Kernels never see it.",
    group=_SSH,
)
EG_REMOTE_GSS_SSH = declare(
    "EG_REMOTE_GSS_SSH", boolean, False, "Whether to log in to the hosts with GSS-API (Kerberos).", group=_SSH
)
EG_ENABLE_TUNNELING = declare(
    "EG_ENABLE_TUNNELING",
    boolean,
    False,
    "Whether remote kernels are reached through their host's SSH server only.",
    group=_SSH,
)
DEFAULT_KERNEL_LOG_DIR = "/tmp/enterprise-gateway-{}"  # nosec B108 # of mode 0700, and looked at before it is used
EG_KERNEL_LOG_DIR = declare(
    "EG_KERNEL_LOG_DIR",
    str,
    "",
    f"Directory on the hosts for the kernels' output, kernel-<id>.log; when unset, "
    f"{DEFAULT_KERNEL_LOG_DIR.format('USER')}, which nobody but that user of the host may enter.",
    group=_SSH,
)
EG_SSH_LOG_LEVEL = declare("EG_SSH_LOG_LEVEL", log_level, 30, "Log level of the SSH library.", group=_SSH)

EG_SSH_KEY_FILES = declare(
    "EG_SSH_KEY_FILES",
    comma_list,
    (),
    "Private key files to log in with; when unset, the keys of the SSH agent and of ~/.ssh are used.",
    group=_SSH,
)
EG_SSH_KNOWN_HOSTS = declare(
    "EG_SSH_KNOWN_HOSTS",
    comma_list,
    ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"),
    "Files with the keys of the hosts; accept-new adds to the first one.",
    group=_SSH,
)
EG_SSH_HOST_KEY_POLICY = declare(
    "EG_SSH_HOST_KEY_POLICY",
    word_of("reject", "accept-new", "ignore"),
    "reject",
    "What to do with a host whose key is not known: reject it; accept and note the key (a changed key is refused); "
    "or ignore host keys altogether, which lets anybody in between read and change everything.",
    group=_SSH,
)
EG_SSH_CONNECT_TIMEOUT = declare(
    "EG_SSH_CONNECT_TIMEOUT", _seconds, 10.0, "Seconds that each step of connecting to a host may take.", group=_SSH
)

_CONTAINERS = "Kubernetes and Docker"
EG_KERNEL_IMAGE = declare(
    "EG_KERNEL_IMAGE",
    optional_text,
    None,
    "Image of kernels for which neither request nor kernelspec names one.",
    group=_CONTAINERS,
    is_read=False,
)
EG_KERNEL_EXECUTOR_IMAGE = declare(
    "EG_KERNEL_EXECUTOR_IMAGE",
    optional_text,
    None,
    "Image of Spark executors for which neither request nor kernelspec names one; when unset, the kernel's image.",
    group=_CONTAINERS,
    is_read=False,
)
EG_NAMESPACE = declare(
    "EG_NAMESPACE",
    str,
    "default",
    "Kubernetes namespace in which the gateway itself runs.",
    group=_CONTAINERS,
    is_read=False,
)
EG_SHARED_NAMESPACE = declare(
    "EG_SHARED_NAMESPACE",
    boolean,
    False,
    "Whether kernels run in EG_NAMESPACE in place of one namespace each.",
    group=_CONTAINERS,
    is_read=False,
)
EG_DEFAULT_KERNEL_SERVICE_ACCOUNT_NAME = declare(
    "EG_DEFAULT_KERNEL_SERVICE_ACCOUNT_NAME",
    str,
    "default",
    "Service account of kernels whose request does not name one.",
    group=_CONTAINERS,
    is_read=False,
)
EG_KERNEL_CLUSTER_ROLE = declare(
    "EG_KERNEL_CLUSTER_ROLE",
    str,
    "cluster-admin",
    "ClusterRole that the kernel's service account gets in a namespace made for it; set it to a role with few rights, "
    "as the Helm chart does.",
    group=_CONTAINERS,
    is_read=False,
)
EG_POD_TEMPLATE_DIR = declare(
    "EG_POD_TEMPLATE_DIR",
    str,
    "/tmp",  # nosec B108 # operators know it from version 3
    "Directory for the pod templates of Spark kernels, kpt_<kernel id>.",
    group=_CONTAINERS,
    is_read=False,
)
EG_DOCKER_NETWORK = declare(
    "EG_DOCKER_NETWORK", str, "bridge", "Docker network that kernel containers join.", group=_CONTAINERS, is_read=False
)
EG_DOCKER_MODE = declare(
    "EG_DOCKER_MODE",
    optional_text,
    None,
    "Told to the Docker launch script by the gateway: swarm or docker. Setting it for the gateway has no effect.",
    group=_CONTAINERS,
    is_read=False,
)
EG_REMOVE_CONTAINER = declare(
    "EG_REMOVE_CONTAINER",
    boolean,
    True,
    "Whether Docker removes a kernel's container when the kernel ends; switch off to read its log.",
    "REMOVE_CONTAINER",
    group=_CONTAINERS,
    is_read=False,
)
EG_KUBERNETES_LOG_LEVEL = declare(
    "EG_KUBERNETES_LOG_LEVEL", log_level, 30, "Log level of the Kubernetes library.", group=_CONTAINERS, is_read=False
)
EG_DOCKER_LOG_LEVEL = declare(
    "EG_DOCKER_LOG_LEVEL", log_level, 30, "Log level of the Docker library.", group=_CONTAINERS, is_read=False
)

_YARN = "Hadoop YARN and IBM Spectrum Conductor"
EG_YARN_SHUTDOWN_WAIT_TIME = declare(
    "EG_YARN_SHUTDOWN_WAIT_TIME",
    _seconds,
    15.0,
    "Seconds that a YARN kernel may take to shut down.",
    group=_YARN,
    is_read=False,
)
EG_YARN_CERT_BUNDLE = declare(
    "EG_YARN_CERT_BUNDLE",
    certificate_bundle,
    True,
    "File of the authorities that certify the resource manager; true verifies with the system's, false not at all.",
    group=_YARN,
    is_read=False,
)
EG_YARN_MUTUAL_AUTHENTICATION = declare(
    "EG_YARN_MUTUAL_AUTHENTICATION",
    Choice(("REQUIRED", "OPTIONAL", "DISABLED"), blank="REQUIRED"),
    "REQUIRED",
    "Whether the resource manager must prove its identity by Kerberos too: REQUIRED, OPTIONAL or DISABLED.",
    group=_YARN,
    is_read=False,
)
EG_YARN_LOG_LEVEL = declare(
    "EG_YARN_LOG_LEVEL", log_level, 30, "Log level of the YARN client library.", group=_YARN, is_read=False
)
YARN_PARTITION_THRESHOLD = declare(
    "YARN_PARTITION_THRESHOLD",
    Number(float, 0.0, 100.0),
    95.0,
    "Percentage of a partition's capacity above which no kernel is started in it. It is read from the kernel's "
    "environment: kernelspec or request.",
    group=_YARN,
    is_read=False,
)
EGO_SERVICE_CREDENTIAL = declare(
    "EGO_SERVICE_CREDENTIAL",
    optional_text,
    None,
    "Credential with which the gateway logs in to Conductor when the request carries no JWT.",
    group=_YARN,
    is_read=False,
)

_ZMQ = "Kernel messages"
EG_ZMQ_MAX_SOCKETS = declare(
    "EG_ZMQ_MAX_SOCKETS",
    _size,
    None,
    "Most ZeroMQ sockets; when unset, as many as the open-file limit allows.",
    group=_ZMQ,
)
EG_ZMQ_IO_THREADS = declare(
    "EG_ZMQ_IO_THREADS", _size, None, "Number of ZeroMQ I/O threads; when unset, ZeroMQ's default of 1.", group=_ZMQ
)
