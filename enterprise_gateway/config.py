"""The gateway's options: traits of one mixin, grouped by what they configure.

A value comes from, in this order: the command line, a config file, the environment variable named in the option's
help, the built-in default.
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
        0 makes the gateway exit at once instead, which is what containers want.""",
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
        percent-encoded; where it is not, it is taken as the text that requests encode.""",
    ).tag(env=envvars.EG_BASE_URL)

    trust_xheaders = Bool(
        envvars.EG_TRUST_XHEADERS.default,
        config=True,
        help="""Whether to believe X-Real-IP, X-Forwarded-For and X-Scheme/X-Forwarded-Proto headers. Only switch it on
        when every request comes through a proxy that sets them.""",
    ).tag(env=envvars.EG_TRUST_XHEADERS)

    allowed_hosts = List(
        Unicode(),
        config=True,
        help="""Names, without a port, that a Host header may carry while clients need neither `auth_token` nor a
        certificate (`client_ca`), besides localhost, this machine's own name and addresses. `.example.org` permits
        that name and all below it, `*` any. Other names are refused: without this, any web page could reach such a
        gateway through a browser by DNS rebinding.""",
    ).tag(env=envvars.EG_ALLOWED_HOSTS)

    # -- Websockets

    ws_ping_interval = Integer(
        envvars.EG_WS_PING_INTERVAL_SECS.default,
        min=0,
        config=True,
        help="""Seconds between two pings to each websocket. One whose system acknowledges nothing for three intervals
        (at least 30 s) is cut; on Linux only. Pings follow output, too: their answers tell what has arrived and need
        not be sent again to a client that comes back. 0 sends none, so that only TCP tells.""",
    ).tag(env=envvars.EG_WS_PING_INTERVAL_SECS)

    ws_ping_timeout = Integer(
        envvars.EG_WS_PING_TIMEOUT_SECS.default,
        min=0,
        config=True,
        help="""Seconds after which a websocket from which nothing came, not even an answer to a ping, is closed. By
        default (0) silence closes none: a client that reads only while it waits answers no pings in between.""",
    ).tag(env=envvars.EG_WS_PING_TIMEOUT_SECS)

    ws_max_message_size = Integer(
        envvars.EG_WS_MAX_MESSAGE_SIZE.default,
        min=1,
        config=True,
        help="Largest message in bytes that a websocket may send; a larger one closes it.",
    ).tag(env=envvars.EG_WS_MAX_MESSAGE_SIZE)

    ws_receive_limit = Integer(
        envvars.EG_WS_RECEIVE_LIMIT.default,
        min=1,
        config=True,
        help="""Most bytes of messages over 1 MiB that are being received at once for the kernels of one user
        (KERNEL_USERNAME); the websocket that exceeds it is closed. It has to be `ws_max_message_size` at least for such
        a message to get through.""",
    ).tag(env=envvars.EG_WS_RECEIVE_LIMIT)

    ws_message_rate = Integer(
        envvars.EG_WS_MESSAGE_RATE.default,
        min=0,
        config=True,
        help="""Most messages a second that a client (a `session_id`) may send. Those beyond it wait, after as many at
        once, and none is lost; the log says so. 0: any number.""",
    ).tag(env=envvars.EG_WS_MESSAGE_RATE)

    ws_user_message_rate = Integer(
        envvars.EG_WS_USER_MESSAGE_RATE.default,
        min=0,
        config=True,
        help="""The same for all websockets together that go to the kernels of one user (KERNEL_USERNAME). Where
        clients name no user, it is for all of them. 0: any number.""",
    ).tag(env=envvars.EG_WS_USER_MESSAGE_RATE)

    ws_queue_limit = Integer(
        envvars.EG_WS_QUEUE_LIMIT.default,
        min=1,
        config=True,
        help="""Most bytes that wait for one slow websocket. When they are exceeded the websocket is closed, and what
        it missed is kept for when it comes back, within `replay_limit`.""",
    ).tag(env=envvars.EG_WS_QUEUE_LIMIT)

    ws_split_size = Integer(
        envvars.EG_WS_SPLIT_SIZE.default,
        min=0,
        config=True,
        help="""Most bytes of one message with a kernel's `stream` output; longer output is sent as several. The
        default suits Jupyter Server, which cuts the connection at 10 MiB. 0 splits nothing.""",
    ).tag(env=envvars.EG_WS_SPLIT_SIZE)

    replay_limit = Integer(
        envvars.EG_REPLAY_LIMIT.default,
        min=0,
        config=True,
        help="""Most bytes of output kept for a kernel while no websocket is attached to it. Beyond it the oldest
        output goes, and the next websocket is told so. 0 keeps nothing.""",
    ).tag(env=envvars.EG_REPLAY_LIMIT)

    replay_total_limit = Integer(
        envvars.EG_REPLAY_TOTAL_LIMIT.default,
        min=0,
        config=True,
        help="""Most bytes kept so for all kernels together, counting what a websocket that closed had not received.
        Beyond it output of the user goes whose kernels keep most, the oldest first; the log and the next websocket
        are told so. 0: no limit but each kernel's.""",
    ).tag(env=envvars.EG_REPLAY_TOTAL_LIMIT)

    replay_user_sessions = Integer(
        envvars.EG_REPLAY_USER_SESSIONS.default,
        min=0,
        config=True,
        help="""Most sessions (a `session_id`, and those in the headers of its messages) that are remembered for when
        they come back, of all kernels of one user. Beyond it the oldest of the kernel that has most are forgotten; the
        log says so. Of one kernel, those of the last 16 websockets are remembered. 0: no further limit.""",
    ).tag(env=envvars.EG_REPLAY_USER_SESSIONS)

    # -- Who may use the gateway

    auth_token = Unicode(
        envvars.EG_AUTH_TOKEN.default,
        config=True,
        help="""Token that every request must carry, in the header `Authorization: token <value>` or as the argument
        `token`. Empty: none is asked for.""",
    ).tag(env=envvars.EG_AUTH_TOKEN)

    authorizer_class = Type(
        default_value=envvars.EG_AUTHORIZER_CLASS.default,
        klass="jupyter_server.auth.authorizer.Authorizer",
        config=True,
        help="Class that decides, request by request, who may do what. The default permits everything.",
    ).tag(env=envvars.EG_AUTHORIZER_CLASS)

    authorized_origin = Unicode(
        envvars.EG_AUTHORIZED_ORIGIN.default,
        config=True,
        help="""Name that the certificate of every client must carry, when TLS with `client_ca` is on; others get 403.
        Empty: any certificate that `client_ca` signed will do.""",
    ).tag(env=envvars.EG_AUTHORIZED_ORIGIN)

    authorized_users = Set(
        Unicode(),
        config=True,
        help="""Users who may start kernels; when empty, all but the unauthorized. A kernelspec's own
        `authorized_users` replace these. Names are case-sensitive and compared with KERNEL_USERNAME.""",
    ).tag(env=envvars.EG_AUTHORIZED_USERS)

    unauthorized_users = Set(
        Unicode(),
        default_value=set(envvars.EG_UNAUTHORIZED_USERS.default),
        config=True,
        help="""Users who may not start kernels, whatever `authorized_users` says. A kernelspec's own
        `unauthorized_users` add to these. Names are case-sensitive and compared with KERNEL_USERNAME.""",
    ).tag(env=envvars.EG_UNAUTHORIZED_USERS)

    # -- TLS

    certfile = Unicode(
        None,
        allow_none=True,
        config=True,
        help="File with the gateway's certificate, and those of intermediate authorities. Setting it serves HTTPS.",
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
        help="Bytes that the body of a request may have; larger ones are refused. Websockets have ws_max_message_size.",
    ).tag(env=envvars.EG_MAX_BODY_SIZE)

    max_connections = Integer(
        envvars.EG_MAX_CONNECTIONS.default,
        min=0,
        config=True,
        help="""Most connections of clients, websockets among them. When there are as many, those on which nobody has
        shown the token yet make room for new ones; where there are none, new ones are refused. 0 is half of the files
        that the system lets the gateway open.""",
    ).tag(env=envvars.EG_MAX_CONNECTIONS)

    max_pending_connections = Integer(
        envvars.EG_MAX_PENDING_CONNECTIONS.default,
        min=1,
        config=True,
        help="""Most connections on which nobody has shown the token yet (or, when none is asked for, sent a request).
        When there are more, the oldest is closed. A connection is in this state for the moment until the header of
        its first request has come; after ten seconds it is closed anyway.""",
    ).tag(env=envvars.EG_MAX_PENDING_CONNECTIONS)

    max_pending_connections_per_address = Integer(
        envvars.EG_MAX_PENDING_CONNECTIONS_PER_ADDRESS.default,
        min=1,
        config=True,
        help="""As max_pending_connections, of one address. An IPv6 network (/64) counts as one address, since one
        machine can have all of it. Mind that clients behind a proxy have its address.""",
    ).tag(env=envvars.EG_MAX_PENDING_CONNECTIONS_PER_ADDRESS)

    # -- Cross-origin requests of browsers

    allow_origin = Unicode(
        envvars.EG_ALLOW_ORIGIN.default,
        config=True,
        help="""Origin whose pages may use the gateway besides its own; `*` permits all. Sent as
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
        help="""Whether GET /api/kernels and GET /api/sessions list what is running; otherwise they answer 403.
        JupyterLab's list of running kernels needs it.""",
    ).tag(env=envvars.EG_LIST_KERNELS)

    max_kernels = Integer(
        None,
        allow_none=True,
        config=True,
        help="Most kernels that run or start at the same time. When unset, there is no limit.",
    ).tag(env=envvars.EG_MAX_KERNELS)

    max_kernels_per_user = Integer(
        envvars.EG_MAX_KERNELS_PER_USER.default,
        config=True,
        help="Most kernels that run or start at the same time for one user. -1: no limit; 0: none may be started.",
    ).tag(env=envvars.EG_MAX_KERNELS_PER_USER)

    client_envs = List(
        Unicode(),
        config=True,
        help="""Names of environment variables that clients may set for their kernels, besides those that start with
        KERNEL_. `*` permits all but those that change how programs are loaded (LD_*, PYTHON*, BASH_ENV and the
        like), which have to be named.""",
    ).tag(env=envvars.EG_CLIENT_ENVS)

    unrestricted_client_envs = List(
        Unicode(),
        config=True,
        help="""Names of those client variables whose values may be longer than 4096 characters and hold `$`, backticks
        and line ends: certificates and pretty-printed KERNEL_VOLUMES, for example. Only name variables that no shell
        script of a kernelspec evaluates.""",
    ).tag(env=envvars.EG_UNRESTRICTED_CLIENT_ENVS)

    env_whitelist = List(Unicode(), config=True, help="Deprecated: use `client_envs`.")

    inherited_envs = List(
        Unicode(),
        config=True,
        help="""Names of the gateway's own environment variables that kernels get. Others never reach a kernel,
        except a small base such as PATH, HOME and LANG.""",
    ).tag(env=envvars.EG_INHERITED_ENVS)

    env_process_whitelist = List(Unicode(), config=True, help="Deprecated: use `inherited_envs`.")

    kernel_headers = List(
        Unicode(),
        config=True,
        help="Names of request headers that are handed to the launch of a kernel, for back ends that use them.",
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
        only some. 0..0 is no restriction.""",
    ).tag(env=envvars.EG_PORT_RANGE)

    transport_encryption = CaselessStrEnum(
        ["disabled", "auto", "required"],
        default_value=envvars.EG_TRANSPORT_ENCRYPTION.default,
        config=True,
        help="""Whether messages between gateway and kernels are encrypted (CurveZMQ): `disabled`; `auto`, for kernels
        that can; `required`, where a kernel that cannot is not started.""",
    ).tag(env=envvars.EG_TRANSPORT_ENCRYPTION)

    allow_payload_v1 = Bool(
        envvars.EG_ALLOW_PAYLOAD_V1.default,
        config=True,
        help="""Whether launchers that are not known to speak payload version 2, as those of Enterprise Gateway 3, may
        report by version 1, which proves nothing: another account of the kernel's host can report first, and gets the
        client's code. Switch it off when no kernelspec needs it; the log names those that do when the gateway
        starts.""",
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
        help="URL of a second YARN resource manager, of which one is active; only used together with `yarn_endpoint`.",
    ).tag(env=envvars.EG_ALT_YARN_ENDPOINT)

    yarn_endpoint_security_enabled = Bool(
        envvars.EG_YARN_ENDPOINT_SECURITY_ENABLED.default,
        config=True,
        help="Whether the YARN resource manager asks for Kerberos (SPNEGO).",
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
        help="""Seconds between two looks at the config files: when one has changed, or is new, its values take
        effect without a restart. 0 never looks. Values given on the command line stay as they are.""",
    ).tag(env=envvars.EG_DYNAMIC_CONFIG_INTERVAL)

    AVAILABILITY_STANDALONE: ClassVar[str] = "standalone"
    AVAILABILITY_REPLICATION: ClassVar[str] = "replication"

    availability_mode = CaselessStrEnum(
        [AVAILABILITY_STANDALONE, AVAILABILITY_REPLICATION],
        default_value=None,
        allow_none=True,
        config=True,
        help="""How kernels outlive the gateway: `standalone`, one gateway that takes its kernels over again when it
        starts; `replication`, several gateways that share kernels through one store. Either turns the persistence of
        kernel sessions on; persistence without a mode means `replication`.""",
    ).tag(env=envvars.EG_AVAILABILITY_MODE)

    keep_kernels_on_stop = Bool(
        None,
        allow_none=True,
        config=True,
        help="""Whether kernels live on when the gateway is stopped in order. When not set, they do if kernel sessions
        are stored. True needs stored sessions (`availability_mode`): without them nobody would find the kernels.""",
    ).tag(env=envvars.EG_KEEP_KERNELS_ON_STOP)

    drain_timeout = Float(
        envvars.EG_DRAIN_TIMEOUT.default,
        min=0,
        config=True,
        help="""Seconds that an orderly stop which keeps the kernels waits for requests under way, such as starts.
        It should be less than the time after which whoever stops the gateway kills it (Kubernetes: 30).""",
    ).tag(env=envvars.EG_DRAIN_TIMEOUT)

    deployment_id = Unicode(
        envvars.EG_DEPLOYMENT_ID.default,
        config=True,
        help="""With stored kernel sessions: label of what kernels are made of (their EG_DEPLOYMENT_ID), by which the
        sweeper finds what was left behind. Gateways that share a store may share it, no others may. When not set,
        one is made and kept in `persistence_root`.""",
    ).tag(env=envvars.EG_DEPLOYMENT_ID)

    # -- Implementations

    kernel_spec_manager_class = Type(
        default_value="jupyter_client.kernelspec.KernelSpecManager",
        config=True,
        help="Class that finds kernelspecs; it must offer what jupyter_client's KernelSpecManager does.",
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
        help="Class that stores kernel sessions, for kernels that outlive the gateway: in files or at a web service.",
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
