"""The gateway's options: traits of one mixin, grouped by what they configure.

A value is taken from the first of these that sets it: the command line, a config file, the environment variable named
in the option's help, the built-in default.
"""

from __future__ import annotations

from typing import Any, ClassVar

from traitlets import (
    Bool,
    Bunch,
    CaselessStrEnum,
    Float,
    Integer,
    List,
    Set,
    TraitError,
    Type,
    Unicode,
    observe,
    validate,
)

from .core import envvars
from .core.options import EnvironmentDefaults

_SERVICES = "enterprise_gateway.services"


class EnterpriseGatewayConfigMixin(EnvironmentDefaults):
    """Everything that can be configured about the gateway itself.

    ``EnterpriseGatewayApp`` derives from it, so each option can be set as ``EnterpriseGatewayApp.<option>`` or as
    ``EnterpriseGatewayConfigMixin.<option>``.
    """

    # -- The server

    port = Integer(
        envvars.EG_PORT.default,
        min=0,
        max=65535,
        config=True,
        help="Port on which the gateway serves. 0 lets the system choose a free one; the log names it.",
    ).tag(env=envvars.EG_PORT)

    port_retries = Integer(
        envvars.EG_PORT_RETRIES.default,
        min=0,
        config=True,
        help="""How many other ports are tried when `port` is taken: the five that follow it, then random ones nearby.
        With 0 the gateway exits at once instead, which is what containers want.""",
    ).tag(env=envvars.EG_PORT_RETRIES)

    ip = Unicode(
        envvars.EG_IP.default,
        config=True,
        help="""Address on which the gateway serves. The default is reachable from this machine only; 0.0.0.0 serves
        on all addresses, for which `auth_token` should be set.""",
    ).tag(env=envvars.EG_IP)

    base_url = Unicode(
        envvars.EG_BASE_URL.default,
        config=True,
        help="""Path under which all routes are served, for gateways behind a proxy that forwards a path. It may be
        percent-encoded; if it is not, requests are matched against its encoded form.""",
    ).tag(env=envvars.EG_BASE_URL)

    trust_xheaders = Bool(
        envvars.EG_TRUST_XHEADERS.default,
        config=True,
        help="""Whether to trust X-Real-IP, X-Forwarded-For and X-Scheme/X-Forwarded-Proto headers. Only switch it on
        when every request comes through a proxy that sets them.""",
    ).tag(env=envvars.EG_TRUST_XHEADERS)

    allowed_hosts = List(
        Unicode(),
        config=True,
        help="""Names, without a port, that the gateway accepts in a Host header, in addition to localhost and this
        machine's own name and addresses. `.example.org` permits that name and all its subdomains, `*` any name. It
        applies only when clients need neither `auth_token` nor a certificate (`client_ca`): any web page could reach
        such a gateway through a browser by DNS rebinding.""",
    ).tag(env=envvars.EG_ALLOWED_HOSTS)

    # -- Websockets

    ws_ping_interval = Integer(
        envvars.EG_WS_PING_INTERVAL_SECS.default,
        min=0,
        config=True,
        help="""Seconds between pings to each websocket. On Linux, a websocket is closed when the client's system
        acknowledges nothing for three intervals (at least 30 s). Pings are also sent after output: their answers show
        what has arrived and need not be sent again when the client reconnects. 0 sends no pings, so that only TCP
        detects a lost connection.""",
    ).tag(env=envvars.EG_WS_PING_INTERVAL_SECS)

    ws_ping_timeout = Integer(
        envvars.EG_WS_PING_TIMEOUT_SECS.default,
        min=0,
        config=True,
        help="""Seconds after which a websocket is closed if nothing was received from it, not even an answer to a
        ping. By default (0) no websocket is closed for silence, because a client that reads only while it waits for a
        reply does not answer pings in between.""",
    ).tag(env=envvars.EG_WS_PING_TIMEOUT_SECS)

    ws_max_message_size = Integer(
        envvars.EG_WS_MAX_MESSAGE_SIZE.default,
        min=1,
        config=True,
        help="Largest message, in bytes, that a client may send; a larger one closes its websocket.",
    ).tag(env=envvars.EG_WS_MAX_MESSAGE_SIZE)

    ws_receive_limit = Integer(
        envvars.EG_WS_RECEIVE_LIMIT.default,
        min=1,
        config=True,
        help="""Maximum bytes of messages over 1 MiB being received at once for the kernels of one user
        (KERNEL_USERNAME); the websocket that exceeds it is closed. It must be at least `ws_max_message_size` for a
        message of that size to get through.""",
    ).tag(env=envvars.EG_WS_RECEIVE_LIMIT)

    ws_message_rate = Integer(
        envvars.EG_WS_MESSAGE_RATE.default,
        min=0,
        config=True,
        help="""Maximum messages per second from one client (a `session_id`), with bursts of as many at once. Messages
        above the limit are delayed, not lost, and this is logged. 0: no limit.""",
    ).tag(env=envvars.EG_WS_MESSAGE_RATE)

    ws_user_message_rate = Integer(
        envvars.EG_WS_USER_MESSAGE_RATE.default,
        min=0,
        config=True,
        help="""Maximum messages per second on all websockets to the kernels of one user (KERNEL_USERNAME) together.
        Clients that name no user share one limit. 0: no limit.""",
    ).tag(env=envvars.EG_WS_USER_MESSAGE_RATE)

    ws_queue_limit = Integer(
        envvars.EG_WS_QUEUE_LIMIT.default,
        min=1,
        config=True,
        help="""Maximum bytes queued for one slow websocket. When more are queued, the websocket is closed, and what
        it missed is kept until the client reconnects, within `replay_limit`.""",
    ).tag(env=envvars.EG_WS_QUEUE_LIMIT)

    ws_split_size = Integer(
        envvars.EG_WS_SPLIT_SIZE.default,
        min=0,
        config=True,
        help="""Maximum bytes of one message with a kernel's `stream` output; longer output is split into several
        messages. The default suits Jupyter Server, which closes the connection above 10 MiB. 0: never split.""",
    ).tag(env=envvars.EG_WS_SPLIT_SIZE)

    replay_limit = Integer(
        envvars.EG_REPLAY_LIMIT.default,
        min=0,
        config=True,
        help="""Maximum bytes of output kept for a kernel while no websocket is connected to it. Beyond that the oldest
        output is discarded, and the next client to connect is told so. 0 keeps nothing.""",
    ).tag(env=envvars.EG_REPLAY_LIMIT)

    replay_total_limit = Integer(
        envvars.EG_REPLAY_TOTAL_LIMIT.default,
        min=0,
        config=True,
        help="""Maximum bytes of output kept for all kernels together, including what closed websockets had not
        received. Beyond that the oldest output of the user whose kernels keep the most is discarded; this is logged,
        and the next client to connect is told so. 0: no limit other than each kernel's.""",
    ).tag(env=envvars.EG_REPLAY_TOTAL_LIMIT)

    replay_user_sessions = Integer(
        envvars.EG_REPLAY_USER_SESSIONS.default,
        min=0,
        config=True,
        help="""Maximum sessions (a `session_id`, and those in the headers of its messages) that are remembered, for
        all kernels of one user, in case their clients reconnect. Beyond that the oldest sessions of the kernel that
        has the most are forgotten, and this is logged. Each kernel remembers those of its last 16 websockets in any
        case. 0: no further limit.""",
    ).tag(env=envvars.EG_REPLAY_USER_SESSIONS)

    # -- Who may use the gateway

    auth_token = Unicode(
        envvars.EG_AUTH_TOKEN.default,
        config=True,
        help="""Token that every request must carry, in the header `Authorization: token <value>` or as the argument
        `token`. Empty: no token is required.""",
    ).tag(env=envvars.EG_AUTH_TOKEN)

    authorizer_class = Type(
        default_value=envvars.EG_AUTHORIZER_CLASS.default,
        klass="jupyter_server.auth.authorizer.Authorizer",
        config=True,
        help="Class that authorizes each request. The default permits everything.",
    ).tag(env=envvars.EG_AUTHORIZER_CLASS)

    authorized_origin = Unicode(
        envvars.EG_AUTHORIZED_ORIGIN.default,
        config=True,
        help="""Name that every client's certificate must carry when TLS with `client_ca` is on; other clients get
        403. Empty: any certificate signed by `client_ca` is accepted.""",
    ).tag(env=envvars.EG_AUTHORIZED_ORIGIN)

    authorized_users = Set(
        Unicode(),
        config=True,
        help="""Users who may start kernels; when empty, all users except `unauthorized_users`. A kernelspec's own
        `authorized_users` replace these. Names are compared with KERNEL_USERNAME and are case-sensitive.""",
    ).tag(env=envvars.EG_AUTHORIZED_USERS)

    unauthorized_users = Set(
        Unicode(),
        default_value=set(envvars.EG_UNAUTHORIZED_USERS.default),
        config=True,
        help="""Users who may not start kernels, whatever `authorized_users` says. A kernelspec's own
        `unauthorized_users` are added to these. Names are compared with KERNEL_USERNAME and are case-sensitive.""",
    ).tag(env=envvars.EG_UNAUTHORIZED_USERS)

    # -- TLS

    certfile = Unicode(
        None,
        allow_none=True,
        config=True,
        help="File with the gateway's certificate, and those of intermediate authorities. Setting it enables HTTPS.",
    ).tag(env=envvars.EG_CERTFILE)

    keyfile = Unicode(
        None,
        allow_none=True,
        config=True,
        help="File with the private key of `certfile`; not needed when `certfile` holds it too.",
    ).tag(env=envvars.EG_KEYFILE)

    client_ca = Unicode(
        None,
        allow_none=True,
        config=True,
        help="""File with the authorities whose certificates clients must present (mutual TLS). Needs `certfile`.""",
    ).tag(env=envvars.EG_CLIENT_CA)

    ssl_version = Integer(
        None,
        allow_none=True,
        config=True,
        help="""Restricts TLS to one version, as a number of Python's `ssl` module: 5 is TLS 1.2. When unset, TLS 1.2
        and later are served.""",
    ).tag(env=envvars.EG_SSL_VERSION)

    max_body_size = Integer(
        envvars.EG_MAX_BODY_SIZE.default,
        min=1024,
        config=True,
        help="Maximum bytes in the body of a request; larger ones are refused. Websockets have `ws_max_message_size`.",
    ).tag(env=envvars.EG_MAX_BODY_SIZE)

    max_connections = Integer(
        envvars.EG_MAX_CONNECTIONS.default,
        min=0,
        config=True,
        help="""Maximum client connections, including websockets. When it is reached, the gateway closes connections
        that have not shown the token yet to make room for new ones; if there are none, it refuses new ones. 0: half
        of the files that the system lets the gateway open.""",
    ).tag(env=envvars.EG_MAX_CONNECTIONS)

    max_pending_connections = Integer(
        envvars.EG_MAX_PENDING_CONNECTIONS.default,
        min=1,
        config=True,
        help="""Maximum connections that have not shown the token yet (or, when no token is required, not sent a
        request). When there are more, the oldest is closed. A connection is in this state only until the headers of
        its first request have arrived; after ten seconds it is closed anyway.""",
    ).tag(env=envvars.EG_MAX_PENDING_CONNECTIONS)

    max_pending_connections_per_address = Integer(
        envvars.EG_MAX_PENDING_CONNECTIONS_PER_ADDRESS.default,
        min=1,
        config=True,
        help="""As `max_pending_connections`, but per address. An IPv6 network (/64) counts as one address, because one
        machine can have all of it. Note that clients behind a proxy share its address.""",
    ).tag(env=envvars.EG_MAX_PENDING_CONNECTIONS_PER_ADDRESS)

    # -- Cross-origin requests of browsers

    allow_origin = Unicode(
        envvars.EG_ALLOW_ORIGIN.default,
        config=True,
        help="""Origin whose pages may use the gateway in addition to its own; `*` permits all. Sent as
        Access-Control-Allow-Origin.""",
    ).tag(env=envvars.EG_ALLOW_ORIGIN)

    allow_credentials = Unicode(
        envvars.EG_ALLOW_CREDENTIALS.default,
        config=True,
        help="Value of the Access-Control-Allow-Credentials header; not sent when empty.",
    ).tag(env=envvars.EG_ALLOW_CREDENTIALS)

    allow_headers = Unicode(
        envvars.EG_ALLOW_HEADERS.default,
        config=True,
        help="Value of the Access-Control-Allow-Headers header; not sent when empty.",
    ).tag(env=envvars.EG_ALLOW_HEADERS)

    allow_methods = Unicode(
        envvars.EG_ALLOW_METHODS.default,
        config=True,
        help="Value of the Access-Control-Allow-Methods header; not sent when empty.",
    ).tag(env=envvars.EG_ALLOW_METHODS)

    expose_headers = Unicode(
        envvars.EG_EXPOSE_HEADERS.default,
        config=True,
        help="Value of the Access-Control-Expose-Headers header; not sent when empty.",
    ).tag(env=envvars.EG_EXPOSE_HEADERS)

    max_age = Unicode(
        envvars.EG_MAX_AGE.default,
        config=True,
        help="Value of the Access-Control-Max-Age header; not sent when empty.",
    ).tag(env=envvars.EG_MAX_AGE)

    # -- Kernels: which, how many, with what environment

    default_kernel_name = Unicode(
        envvars.EG_DEFAULT_KERNEL_NAME.default,
        config=True,
        help="Kernelspec to start when a request names none. Empty: `python3`.",
    ).tag(env=envvars.EG_DEFAULT_KERNEL_NAME)

    list_kernels = Bool(
        envvars.EG_LIST_KERNELS.default,
        config=True,
        help="""Whether GET /api/kernels and GET /api/sessions list what is running; if not, they answer 403.
        JupyterLab's list of running kernels needs it.""",
    ).tag(env=envvars.EG_LIST_KERNELS)

    max_kernels = Integer(
        None,
        allow_none=True,
        config=True,
        help="Maximum kernels that run or start at the same time. When unset, there is no limit.",
    ).tag(env=envvars.EG_MAX_KERNELS)

    max_kernels_per_user = Integer(
        envvars.EG_MAX_KERNELS_PER_USER.default,
        config=True,
        help="Maximum kernels that run or start at the same time for one user. -1: no limit; 0: none may be started.",
    ).tag(env=envvars.EG_MAX_KERNELS_PER_USER)

    client_envs = List(
        Unicode(),
        config=True,
        help="""Names of environment variables that clients may set for their kernels, in addition to those that start
        with KERNEL_. `*` permits all except those that change how programs are loaded (LD_*, PYTHON*, BASH_ENV and
        the like), which must be named.""",
    ).tag(env=envvars.EG_CLIENT_ENVS)

    unrestricted_client_envs = List(
        Unicode(),
        config=True,
        help="""Names of client variables whose values may be longer than 4096 characters and contain `$`, backticks
        and newlines, such as certificates and pretty-printed KERNEL_VOLUMES. Only name variables that no shell
        script of a kernelspec evaluates.""",
    ).tag(env=envvars.EG_UNRESTRICTED_CLIENT_ENVS)

    env_whitelist = List(Unicode(), config=True, help="Deprecated: use `client_envs`.")

    inherited_envs = List(
        Unicode(),
        config=True,
        help="""Names of the gateway's own environment variables that kernels inherit. Others never reach a kernel,
        except a small base such as PATH, HOME and LANG.""",
    ).tag(env=envvars.EG_INHERITED_ENVS)

    env_process_whitelist = List(Unicode(), config=True, help="Deprecated: use `inherited_envs`.")

    kernel_headers = List(
        Unicode(),
        config=True,
        help="Names of request headers that are passed to the launch of a kernel, for back ends that use them.",
    ).tag(env=envvars.EG_KERNEL_HEADERS)

    impersonation_enabled = Bool(
        envvars.EG_IMPERSONATION_ENABLED.default,
        config=True,
        help="""Whether launchers run kernels as the operating-system user KERNEL_USERNAME, with sudo. The gateway's
        own user should then be among `unauthorized_users`.""",
    ).tag(env=envvars.EG_IMPERSONATION_ENABLED)

    # -- Where kernels run

    remote_hosts = List(
        Unicode(),
        default_value=list(envvars.EG_REMOTE_HOSTS.default),
        config=True,
        help="""Hosts on which DistributedProcessProxy starts kernels by SSH. A kernelspec's own `remote_hosts`
        replace these.""",
    ).tag(env=envvars.EG_REMOTE_HOSTS)

    load_balancing_algorithm = Unicode(
        envvars.EG_LOAD_BALANCING_ALGORITHM.default,
        config=True,
        help="""How DistributedProcessProxy chooses among the hosts: `round-robin` takes the next one,
        `least-connection` the one with the fewest kernels.""",
    ).tag(env=envvars.EG_LOAD_BALANCING_ALGORITHM)

    port_range = Unicode(
        envvars.EG_PORT_RANGE.default,
        config=True,
        help="""Ports that kernels use, as `<lower>..<upper>`, both between 1024 and 65535, for networks that permit
        only some. 0..0: no restriction.""",
    ).tag(env=envvars.EG_PORT_RANGE)

    transport_encryption = CaselessStrEnum(
        ["disabled", "auto", "required"],
        default_value=envvars.EG_TRANSPORT_ENCRYPTION.default,
        config=True,
        help="""Whether messages between gateway and kernels are encrypted (CurveZMQ): `disabled`; `auto`, for kernels
        that support it; `required`, which refuses to start a kernel that does not.""",
    ).tag(env=envvars.EG_TRANSPORT_ENCRYPTION)

    allow_payload_v1 = Bool(
        envvars.EG_ALLOW_PAYLOAD_V1.default,
        config=True,
        help="""Whether launchers that are not known to support payload version 2, such as those of Enterprise Gateway
        3, may report with version 1, which is not authenticated: another account on the kernel's host can report
        first and receive the client's code. Switch it off when no kernelspec needs it; when the gateway starts, the
        log names those that do.""",
    ).tag(env=envvars.EG_ALLOW_PAYLOAD_V1)

    yarn_endpoint = Unicode(
        None,
        allow_none=True,
        config=True,
        help="""URL of the YARN resource manager, for example http://rm:8088/ws/v1/cluster. When unset, Hadoop's own
        configuration files name it.""",
    ).tag(env=envvars.EG_YARN_ENDPOINT)

    alt_yarn_endpoint = Unicode(
        None,
        allow_none=True,
        config=True,
        help="URL of the second YARN resource manager of a pair, of which one is active; needs `yarn_endpoint`.",
    ).tag(env=envvars.EG_ALT_YARN_ENDPOINT)

    yarn_endpoint_security_enabled = Bool(
        envvars.EG_YARN_ENDPOINT_SECURITY_ENABLED.default,
        config=True,
        help="Whether the YARN resource manager requires Kerberos (SPNEGO).",
    ).tag(env=envvars.EG_YARN_ENDPOINT_SECURITY_ENABLED)

    conductor_endpoint = Unicode(
        None,
        allow_none=True,
        config=True,
        help="URL of the IBM Spectrum Conductor REST service.",
    ).tag(env=envvars.EG_CONDUCTOR_ENDPOINT)

    # -- Operation

    dynamic_config_interval = Integer(
        envvars.EG_DYNAMIC_CONFIG_INTERVAL.default,
        min=0,
        config=True,
        help="""Seconds between checks of the config files. The values of a changed or new file take effect without a
        restart. 0: never check. Values given on the command line stay as they are.""",
    ).tag(env=envvars.EG_DYNAMIC_CONFIG_INTERVAL)

    AVAILABILITY_STANDALONE: ClassVar[str] = "standalone"
    AVAILABILITY_REPLICATION: ClassVar[str] = "replication"

    availability_mode = CaselessStrEnum(
        [AVAILABILITY_STANDALONE, AVAILABILITY_REPLICATION],
        default_value=None,
        allow_none=True,
        config=True,
        help="""How kernels outlive the gateway: `standalone`, one gateway that recovers its kernels when it starts;
        `replication`, several gateways that share kernels through one store. Either mode turns on the persistence of
        kernel sessions; persistence without a mode means `replication`.""",
    ).tag(env=envvars.EG_AVAILABILITY_MODE)

    keep_kernels_on_stop = Bool(
        None,
        allow_none=True,
        config=True,
        help="""Whether kernels keep running after an orderly stop of the gateway. When unset, they do if kernel
        sessions are stored. True needs stored sessions (`availability_mode`), because without them no gateway could
        find the kernels again.""",
    ).tag(env=envvars.EG_KEEP_KERNELS_ON_STOP)

    drain_timeout = Float(
        envvars.EG_DRAIN_TIMEOUT.default,
        min=0,
        config=True,
        help="""Seconds that an orderly stop which keeps the kernels waits for requests in progress, such as starts.
        It should be less than the grace period after which the gateway is killed (Kubernetes: 30).""",
    ).tag(env=envvars.EG_DRAIN_TIMEOUT)

    deployment_id = Unicode(
        envvars.EG_DEPLOYMENT_ID.default,
        config=True,
        help="""Label put on kernels' processes and files (their EG_DEPLOYMENT_ID) when kernel sessions are stored, so
        that the sweeper finds what was left behind. Only gateways that share a store may share a label. When unset,
        one is generated and kept in `persistence_root`.""",
    ).tag(env=envvars.EG_DEPLOYMENT_ID)

    # -- Implementations

    kernel_spec_manager_class = Type(
        default_value="jupyter_client.kernelspec.KernelSpecManager",
        config=True,
        help="Class that finds kernelspecs; it must have the interface of jupyter_client's KernelSpecManager.",
    )

    kernel_spec_cache_class = Type(
        default_value=f"{_SERVICES}.kernelspecs.KernelSpecCache",
        klass=f"{_SERVICES}.kernelspecs.KernelSpecCache",
        config=True,
        help="Class that caches kernelspecs; must be KernelSpecCache or derive from it.",
    )

    kernel_manager_class = Type(
        default_value=f"{_SERVICES}.kernels.remotemanager.RemoteMappingKernelManager",
        klass=f"{_SERVICES}.kernels.remotemanager.RemoteMappingKernelManager",
        config=True,
        help="Class that manages all kernels; must be RemoteMappingKernelManager or derive from it.",
    )

    kernel_session_manager_class = Type(
        default_value=f"{_SERVICES}.sessions.kernelsessionmanager.FileKernelSessionManager",
        klass=f"{_SERVICES}.sessions.kernelsessionmanager.KernelSessionManager",
        config=True,
        help="Class that stores the sessions of kernels that outlive the gateway: in files, a database or a webhook.",
    )

    @observe("env_whitelist", "env_process_whitelist")
    def _deprecated_option_changed(self, change: Bunch) -> None:
        current = {"env_whitelist": "client_envs", "env_process_whitelist": "inherited_envs"}[change.name]
        self._warn(f"{change.name} is deprecated, use {current} instead.")
        setattr(self, current, change.new)

    @validate("load_balancing_algorithm")
    def _check_load_balancing_algorithm(self, proposal: Bunch) -> Any:
        known = ("round-robin", "least-connection")
        if proposal.value not in known:
            raise TraitError(f"load_balancing_algorithm must be one of {', '.join(known)}, not {proposal.value!r}")
        return proposal.value

    def _warn(self, message: str) -> None:
        log = getattr(self, "log", None)
        if log is not None:
            log.warning("%s", message)
