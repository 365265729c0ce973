"""The application: builds the managers, the web application and the server; starts and stops them."""

from __future__ import annotations

import asyncio
import errno
import gc
import getpass
import logging
import os
import random
import re
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_core.application import JupyterApp, NoStart, base_aliases, base_flags
from tornado import httpserver, ioloop, netutil, web
from tornado.log import LogFormatter
from traitlets import Bunch, TraitError, default, observe
from traitlets.config import Config, Configurable, catch_config_error

from ._version import __version__
from .base.connections import Connections, GatewayServer
from .base.handlers import default_handlers as other_handlers
from .base.handlers import is_loopback, log_request, own_names
from .base.traffic import Traffic
from .config import EnterpriseGatewayConfigMixin
from .core import envvars
from .core.deadline import Deadline
from .core.errors import StoreUnavailableError
from .core.offload import offload, under_way
from .core.steps import take_all
from .dynamicconfig import DynamicConfig
from .services.api.handlers import default_handlers as api_handlers
from .services.kernels.handlers import default_handlers as kernel_handlers
from .services.kernels.remotemanager import RemoteKernelManager, RemoteMappingKernelManager
from .services.kernels.restarter import KernelRestarter
from .services.kernels.sweeper import Sweeper
from .services.kernels.websocket import default_handlers as websocket_handlers
from .services.kernelspecs import KernelSpecCache
from .services.kernelspecs.handlers import default_handlers as kernelspec_handlers
from .services.kernelspecs.reading import CheckedKernelSpec
from .services.kernelspecs.unproven import unproven_kernelspecs
from .services.processproxies.contract import gateway_user
from .services.processproxies.deployment import Deployment, RunDeployment, StoreDeployment
from .services.sessions.handlers import default_handlers as session_handlers
from .services.sessions.kernelsessionmanager import (
    FileKernelSessionManager,
    SQLKernelSessionManager,
    WebhookKernelSessionManager,
)
from .services.sessions.sessionmanager import SessionManager
from .transport.response import Conflict

if TYPE_CHECKING:
    from jupyter_events import EventLogger

# The tornado settings that follow an option, and how its value is written there.
SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **{
        option: (f"eg_{option}", lambda value: value)
        for option in (
            "allow_credentials",
            "allow_headers",
            "allow_methods",
            "allow_origin",
            "allowed_hosts",
            "auth_token",
            "authorized_origin",
            "authorized_users",
            "client_ca",
            "client_envs",
            "expose_headers",
            "inherited_envs",
            "kernel_headers",
            "list_kernels",
            "max_age",
            "max_body_size",
            "max_kernels",
            "unauthorized_users",
            "unrestricted_client_envs",
            "ws_message_rate",
            "ws_ping_timeout",
            "ws_queue_limit",
            "ws_receive_limit",
            "ws_split_size",
            "ws_user_message_rate",
        )
    },
    "ws_ping_interval": ("ws_ping_interval", lambda seconds: seconds * 1000),
    "ws_max_message_size": ("websocket_max_message_size", lambda size: size),
}

LAUNCH_CONFLICT = "https://events.jupyter.org/jupyter_enterprise_gateway/launch_conflict/v1"

BODY_SECONDS = 30.0  # that a client has to send the body of a request
IDLE_SECONDS = 300.0  # after which a connection that no request uses is closed
MAX_HEADER_BYTES = 64 << 10  # of a request
PATIENCE_SECONDS = 10.0  # that each step of the end may take for which a thread is needed
LEAVING_SECONDS = 5.0  # that threads have to end when all is done
CLOSING_SECONDS = 1.0  # that clients have to answer the closing of their websockets

# Numbers of the ssl module's PROTOCOL_ constants that stand for TLS 1.2; older versions are not served.
TLS_1_2_ONLY = {5}
TLS_1_2_AND_LATER = {2, 17}  # PROTOCOL_TLS, PROTOCOL_TLS_SERVER


class EnterpriseGatewayApp(EnterpriseGatewayConfigMixin, JupyterApp):
    """Serves kernels that run where the resources are, over Jupyter's REST and websocket protocols."""

    name = "jupyter-enterprise-gateway"
    version = __version__
    description = """
        Jupyter Enterprise Gateway

        Starts Jupyter kernels on this machine, on SSH hosts and on clusters, and lets Jupyter Server, JupyterLab and
        other clients use them over HTTP and websockets.
    """
    examples = """
        jupyter enterprisegateway --ip=0.0.0.0 --port_retries=0
        jupyter enterprisegateway --EnterpriseGatewayApp.max_kernels=20 --debug
        jupyter enterprisegateway --generate-config

        jupyter lab --gateway-url=http://127.0.0.1:8888
    """

    classes = [
        KernelSpecCache,
        FileKernelSessionManager,
        WebhookKernelSessionManager,
        SQLKernelSessionManager,
        RemoteMappingKernelManager,
        RemoteKernelManager,
        KernelRestarter,
        KernelSpecManager,
    ]

    aliases = {
        **base_aliases,
        "ip": "EnterpriseGatewayApp.ip",
        "port": "EnterpriseGatewayApp.port",
        "port_retries": "EnterpriseGatewayApp.port_retries",
        "keyfile": "EnterpriseGatewayApp.keyfile",
        "certfile": "EnterpriseGatewayApp.certfile",
        "client-ca": "EnterpriseGatewayApp.client_ca",
        "ssl_version": "EnterpriseGatewayApp.ssl_version",
    }
    flags = dict(base_flags)

    _log_formatter_cls = LogFormatter  # type: ignore[assignment]

    kernel_manager: RemoteMappingKernelManager
    kernel_spec_cache: KernelSpecCache
    session_manager: SessionManager
    sweeper: Sweeper
    traffic: Traffic
    event_logger: EventLogger | None = None
    connections: Connections
    web_app: web.Application | None = None
    http_server: httpserver.HTTPServer | None = None
    dynamic_config_poller: DynamicConfig | None = None
    _sockets: list[socket.socket] | None = None
    _logs_for_root = False
    _stop_requested: asyncio.Event | None = None
    _leaving: threading.Timer | None = None

    # -- Logging

    @default("log_format")
    def _default_log_format(self) -> str:
        return "%(color)s[%(levelname)1.1s %(asctime)s.%(msecs).03d %(name)s]%(end_color)s %(message)s"

    @default("log_datefmt")
    def _default_log_datefmt(self) -> str:
        return "%Y-%m-%d %H:%M:%S"

    def get_default_logging_config(self) -> dict[str, Any]:
        """Send what the gateway's modules and its libraries log to the application's handler too.

        A root logger that has handlers of its own belongs to a program that embeds the gateway; it is left alone.
        """
        config: dict[str, Any] = super().get_default_logging_config()
        self._logs_for_root = self._logs_for_root or not logging.getLogger().handlers
        if "handlers" in config and self._logs_for_root:
            config["root"] = {"level": self.log_level, "handlers": ["console"]}
            # They would drown everything else at DEBUG: an event for each file that the gateway itself reads.
            config["loggers"].update({name: {"level": "WARNING"} for name in ("watchdog", "asyncio")})
            # It tells of malformed requests, and quotes them: an Authorization header with a control character, say.
            config["loggers"]["tornado.general"] = {"level": "WARNING"}
        return config

    @observe("config")
    def _config_changed(self, change: Bunch) -> None:
        # Not the application's own observer: it logs the configuration, and with it the token.
        Configurable._config_changed(self, change)

    # -- Configuration files

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Load jupyter_config and jupyter_enterprise_gateway_config from the Jupyter config path."""
        super().load_config_file(suppress_errors=suppress_errors)
        self._dynamic_config.note_loaded()

    def config_file_candidates(self) -> list[str]:
        """Return the paths of all files that may hold configuration, whether they exist or not."""
        if self.config_file:
            named = [self.config_file]
        else:
            named = [str(Path(path, self.config_file_name)) for path in self.config_file_paths]
        stems = [str(Path(path, "jupyter_config")) for path in self.config_file_paths] + named
        return [os.path.splitext(stem)[0] + suffix for stem in stems for suffix in (".py", ".json")]

    def read_config_files(self) -> Config:
        """Return what the config files hold now, without applying it; blocks."""
        merged = Config()
        for name, path in self._config_locations():
            for config, _ in self._load_config_files(
                name, path=path, log=self.log, raise_config_file_errors=self.raise_config_file_errors
            ):
                merged.merge(config)
        return merged

    def _config_locations(self) -> Iterator[tuple[str, Any]]:
        yield "jupyter_config", self.config_file_paths
        if self.config_file:
            file = Path(self.config_file)
            yield file.stem, str(file.parent)
        elif self.config_file_name:
            yield self.config_file_name, self.config_file_paths

    # -- Dynamic configuration

    @property
    def _dynamic_config(self) -> DynamicConfig:
        if self.dynamic_config_poller is None:
            self.dynamic_config_poller = DynamicConfig(self)
        return self.dynamic_config_poller

    def init_dynamic_configs(self) -> None:
        """Register what follows the config files, and check them every ``dynamic_config_interval`` seconds."""
        self.add_dynamic_configurable("EnterpriseGatewayApp", self)
        self.add_dynamic_configurable("MappingKernelManager", self.kernel_manager)
        self.add_dynamic_configurable("KernelSpecManager", self.kernel_spec_manager)
        self.add_dynamic_configurable("KernelSessionManager", self.kernel_session_manager)
        self._poll_config_files()

    def add_dynamic_configurable(self, config_name: str, configurable: Configurable) -> None:
        """Let an object's options follow the config files too; RuntimeError if it is not a Configurable."""
        self._dynamic_config.add(config_name, configurable)

    def update_dynamic_configurables(self) -> bool:
        """Read the config files again if they have changed; return whether they had."""
        return self._dynamic_config.update()

    @observe("dynamic_config_interval")
    def _dynamic_config_interval_changed(self, change: Bunch) -> None:
        self._poll_config_files()

    def _poll_config_files(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # start() polls once the loop runs
        self._dynamic_config.start_polling(self.dynamic_config_interval)

    # -- Initialization

    @catch_config_error
    def initialize(self, argv: list[str] | None = None) -> None:
        """Parse the command line, load the config files and build everything up to the bound port."""
        super().initialize(argv)
        if self._dispatching or self.show_config:
            return
        try:
            envvars.check()
        except ValueError as error:
            self.log.critical("An environment variable cannot be used: %s", error)
            self.exit(1)
        raise_open_file_limit(self.log)
        self.init_configurables()
        self.init_webapp()
        self.init_http_server()

    def init_configurables(self) -> None:
        """Build the managers, from kernelspecs to the store of kernel sessions."""
        envvars.check()
        self.traffic = Traffic()
        self.init_event_logger()
        self.connections = Connections(self.traffic.websockets)
        self._limit_connections()
        self.kernel_spec_manager = self.kernel_spec_manager_class(parent=self)
        if getattr(self.kernel_spec_manager, "kernel_spec_class", None) is KernelSpec:
            self.kernel_spec_manager.kernel_spec_class = CheckedKernelSpec
        self._apply_allowed_kernels()
        self.kernel_spec_cache = self.kernel_spec_cache_class(parent=self, kernel_spec_manager=self.kernel_spec_manager)
        default_name = {"default_kernel_name": self.default_kernel_name} if self.default_kernel_name else {}
        self.kernel_manager = self.kernel_manager_class(
            parent=self,
            log=self.log,
            connection_dir=self.runtime_dir,
            kernel_spec_manager=self.kernel_spec_manager,
            **default_name,
        )
        self.session_manager = SessionManager(parent=self, log=self.log, kernel_manager=self.kernel_manager)
        self.kernel_session_manager = self.kernel_session_manager_class(
            parent=self, log=self.log, kernel_manager=self.kernel_manager
        )
        self.kernel_manager.kernel_session_manager = self.kernel_session_manager
        self._reconcile_availability()
        self.kernel_manager.resources.deployment = self._make_deployment()
        self.kernel_manager.resources.on_conflict.append(self._emit_conflict)
        self.sweeper = Sweeper(
            Path(self.runtime_dir),
            self.kernel_manager.resources,
            self.kernel_spec_manager,
            lambda: self.kernel_manager.keeps_kernels,
            self.kernel_manager.known_kernels,
        )
        self.init_dynamic_configs()

    def init_event_logger(self) -> None:
        """Set up event logging only if it is configured (``c.EventLogger``), because importing it takes a second."""
        if "EventLogger" not in self.config:
            return
        from jupyter_events import EventLogger

        self.event_logger = EventLogger(parent=self)
        self.event_logger.register_event_schema(Path(__file__).parent / "event_schemas" / "launch_conflict.yaml")

    def _apply_allowed_kernels(self) -> None:
        allowed = envvars.EG_ALLOWED_KERNELS()
        if allowed and getattr(self.kernel_spec_manager, "allowed_kernelspecs", None) == set():
            self.kernel_spec_manager.allowed_kernelspecs = set(allowed)

    def _reconcile_availability(self) -> None:
        """Make availability mode and persistence of kernel sessions agree."""
        store = self.kernel_session_manager
        if store.enable_persistence and self.availability_mode is None:
            self.availability_mode = self.AVAILABILITY_REPLICATION
            self.log.info(
                "Kernel sessions are stored, so the availability mode is set to '%s'.", self.availability_mode
            )
        elif self.availability_mode is not None and not store.enable_persistence:
            store.enable_persistence = True
            self.log.info("The availability mode is '%s', so kernel sessions are stored.", self.availability_mode)
        if self.keep_kernels_on_stop and not store.enable_persistence:
            raise TraitError(
                "keep_kernels_on_stop needs stored kernel sessions: set availability_mode, or no gateway would find "
                "the kernels again."
            )

    def _make_deployment(self) -> Deployment:
        """Return the label put on the processes, containers and files of this gateway's kernels."""
        store = self.kernel_session_manager
        if not store.enable_persistence:
            return RunDeployment(Path(self.runtime_dir))
        root = Path(store.persistence_root) if store.persistence_root not in ("", "/") else Path(self.data_dir)
        return StoreDeployment(root, store.store_identity, self.deployment_id)

    @property
    def leaves_kernels(self) -> bool:
        """Whether kernels live on when the gateway stops gracefully."""
        keep = self.keep_kernels_on_stop
        return bool(self.kernel_session_manager.enable_persistence) if keep is None else bool(keep)

    def init_webapp(self) -> None:
        """Build the web application: handlers below ``base_url``, and their settings."""
        base_url = url_path(self.base_url)
        services = [
            *api_handlers,
            *kernel_handlers,
            *websocket_handlers,
            *kernelspec_handlers,
            *session_handlers,
            *other_handlers,
        ]
        prefix = path_pattern(base_url)
        handlers = [(prefix + pattern.lstrip("/"), *rest) for pattern, *rest in services]
        settings: dict[str, Any] = {
            "kernel_manager": self.kernel_manager,
            "session_manager": self.session_manager,
            "contents_manager": None,
            "kernel_spec_manager": self.kernel_spec_manager,
            "kernel_spec_cache": self.kernel_spec_cache,
            "allow_origin": self.allow_origin,
            "base_url": base_url,
            "allow_remote_access": True,
            "authorizer": self.authorizer_class(parent=self, log=self.log),
            "eg_traffic": self.traffic,
            "event_logger": self.event_logger,
            "eg_connections": self.connections,
            "log_function": log_request,
        }
        for option, (setting, written) in SETTINGS.items():
            settings[setting] = written(getattr(self, option))
        self.web_app = web.Application(handlers, **settings)

    @observe("allow_origin", *SETTINGS)
    def _setting_changed(self, change: Bunch) -> None:
        """Let a changed option take effect on the next request."""
        if self.web_app is None:
            return
        setting, written = SETTINGS[change.name]
        self.web_app.settings[setting] = written(change.new)
        if change.name == "allow_origin":
            self.web_app.settings["allow_origin"] = change.new

    @observe("max_connections", "max_pending_connections", "max_pending_connections_per_address")
    def _connection_limit_changed(self, change: Bunch) -> None:
        if hasattr(self, "connections"):
            self._limit_connections()

    def _limit_connections(self) -> None:
        self.connections.max_open = self.max_connections or open_file_limit() // 2
        self.connections.max_pending = self.max_pending_connections
        self.connections.max_pending_per_address = self.max_pending_connections_per_address

    @observe("default_kernel_name")
    def _default_kernel_name_changed(self, change: Bunch) -> None:
        manager = getattr(self, "kernel_manager", None)
        if manager is not None and change.new:
            manager.default_kernel_name = change.new

    def init_http_server(self) -> None:
        """Build the HTTP server and bind its port; exit when none is free. It accepts once the application starts."""
        ssl_options = self._ssl_options_or_exit()
        self.http_server = GatewayServer(
            self.web_app,
            connections=self.connections,
            xheaders=self.trust_xheaders,
            ssl_options=ssl_options,
            max_body_size=self.max_body_size,
            max_header_size=MAX_HEADER_BYTES,
            max_buffer_size=2 * self.max_body_size,  # websockets raise it for themselves
            body_timeout=BODY_SECONDS,
            idle_connection_timeout=IDLE_SECONDS,
        )
        for port in candidate_ports(self.port, self.port_retries + 1):
            try:
                self._sockets = netutil.bind_sockets(port, self.ip)
            except PermissionError:
                self.log.warning("Permission to listen on port %i denied.", port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    self.log.critical("The gateway cannot listen on %s: %s", self.ip, error)
                    self.exit(1)
                self.log.info("The port %i is already in use, trying another port.", port)
            else:
                self.port = self._sockets[0].getsockname()[1]
                return
        self.log.critical("The gateway could not be started because no available port could be found.")
        self.exit(1)

    def _ssl_options_or_exit(self) -> ssl.SSLContext | None:
        try:
            return self._build_ssl_options()
        except (OSError, ValueError) as error:
            files = [file for file in (self.certfile, self.keyfile, self.client_ca) if file]
            self.log.critical("TLS cannot be set up with %s: %s", ", ".join(files), error)
            self.exit(1)
            return None

    def _build_ssl_options(self) -> ssl.SSLContext | None:
        """Return the TLS context that the options describe; None serves plain HTTP.

        Raises
        ------
        ValueError
            ``ssl_version`` is not a version that can be served, or there is no certificate.
        """
        if self.authorized_origin and not self.client_ca:
            raise ValueError("authorized_origin needs client_ca: without it clients show no certificate.")
        if not (self.certfile or self.keyfile or self.client_ca):
            return None
        if not self.certfile:
            raise ValueError("client_ca and keyfile need certfile: without a certificate no client can connect.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ssl_version is not None:
            if self.ssl_version in TLS_1_2_ONLY:
                context.maximum_version = ssl.TLSVersion.TLSv1_2
            elif self.ssl_version not in TLS_1_2_AND_LATER:
                raise ValueError(f"ssl_version {self.ssl_version} is not served: use 5 for TLS 1.2, or leave it unset.")
        context.load_cert_chain(self.certfile, self.keyfile, self._ask_for_passphrase)
        if self.client_ca:
            context.load_verify_locations(cafile=self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _ask_for_passphrase(self) -> str:
        """Return what the user types at the terminal; called when the TLS key is encrypted.

        Raises
        ------
        ValueError
            There is no terminal.
        """
        key = self.keyfile or self.certfile
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        except OSError as error:
            raise ValueError(
                f"the key is encrypted, and there is no terminal to ask for its passphrase. Let keyfile name a copy "
                f"without one that only the gateway's user can read: (umask 077; openssl pkey -in {key} -out tls.key)"
            ) from error
        return getpass.getpass(f"Passphrase of {key}: ")

    # -- Running

    def start(self) -> None:
        """Serve until a signal ends the gateway; called by ``launch_instance``."""
        super().start()
        gc.freeze()  # the program itself: else a full collection holds the event loop for 20 ms
        try:
            asyncio.run(self._serve_and_leave())
        finally:
            if self._leaving is not None and not under_way():
                self._leaving.cancel()

    async def _serve_and_leave(self) -> None:
        """Serve; a thread that hangs delays the exit only briefly, whereas Python would wait for it."""
        exit_code = 1
        try:
            await self.serve()
            exit_code = 0
        finally:
            self._leaving = threading.Timer(LEAVING_SECONDS, self._leave, [exit_code])
            self._leaving.daemon = True
            self._leaving.start()

    def _leave(self, exit_code: int) -> None:
        busy = ", ".join(sorted(set(under_way()))) or "those of a third party"
        self.log.warning("The gateway exits although these threads have not ended: %s", busy)
        logging.shutdown()
        os._exit(exit_code)

    async def serve(self) -> None:
        """Recover stored kernels, accept requests, and stop gracefully when told to."""
        assert self.http_server is not None
        self._stop_requested = asyncio.Event()
        self._handle_signals(asyncio.get_running_loop())
        self._warn_of_risks()
        if self.availability_mode == self.AVAILABILITY_STANDALONE:
            await self.kernel_manager.revive_all()
        elif self.availability_mode == self.AVAILABILITY_REPLICATION:
            self.kernel_manager.join_replicas()
        self._poll_config_files()
        self.http_server.add_sockets(self._sockets or [])
        scheme = "https" if self.http_server.ssl_options is not None else "http"
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        self.log.info("Jupyter Enterprise Gateway %s is available at %s://%s:%d", __version__, scheme, host, self.port)
        sweep = asyncio.ensure_future(self._sweep_at_start())
        warm_up = asyncio.ensure_future(self._warm_up())
        warm_up.add_done_callback(self._log_failed_warm_up)
        try:
            await self._stop_requested.wait()
        finally:
            sweep.cancel()
            # Else it would start the cache's threads after they were stopped.
            await asyncio.wait([warm_up, sweep], timeout=LEAVING_SECONDS)
            await self.stop()

    async def _sweep_at_start(self) -> None:
        """Remove leftovers of earlier gateways; replicas leave that to the operator, who knows which ones run."""
        if self.availability_mode == self.AVAILABILITY_REPLICATION:
            return
        try:
            report = await self.sweeper.sweep()
        except StoreUnavailableError as error:
            self.log.warning("Leftovers of earlier gateways were not searched for: %s", error)
        except Exception:
            self.log.exception("Leftovers of earlier gateways could not be removed")
        else:
            for back_end, reason in report.not_asked.items():
                self.log.warning("%s could not be searched for leftovers of earlier gateways: %s", back_end, reason)

    def request_stop(self) -> None:
        """Make ``serve`` stop gracefully; called by signal handlers."""
        if self._stop_requested is not None:
            self._stop_requested.set()

    async def stop(self) -> None:
        """Stop accepting requests, end the kernels or detach from them, and release everything.

        Kernels that live on are detached once requests in progress are answered. Their websockets are closed last:
        what a kernel says while no gateway listens is lost.
        """
        self._dynamic_config.stop_polling()
        if self.http_server is not None:
            self.http_server.stop()
        self.traffic.is_draining = True
        keep_kernels = self.leaves_kernels
        steps: list[Callable[[], Any]] = [self._drain] if keep_kernels else []
        steps.append(partial(self.kernel_manager.stop, keep_kernels=keep_kernels))
        steps.append(lambda: self.traffic.websockets_closed(Deadline(CLOSING_SECONDS)))
        steps.append(self.stop_managers)
        if self.http_server is not None:
            steps.append(self.http_server.close_all_connections)
        await take_all(steps, "The gateway", self.log)

    async def stop_managers(self) -> None:
        """Close everything that the managers have open, except kernels."""
        steps: list[Callable[[], Any]] = [
            self.kernel_manager.close,
            self.kernel_session_manager.close,
            partial(offload, self.kernel_spec_cache.stop),
        ]
        await take_all(steps, "The gateway", self.log, patience=PATIENCE_SECONDS)

    async def _drain(self) -> None:
        """Wait until the requests in progress are answered, at most ``drain_timeout`` seconds."""
        count = len(self.traffic.requests)
        if count:
            self.log.info("Waiting up to %g s for %d requests in progress.", self.drain_timeout, count)
        if not await self.traffic.requests_answered(Deadline(self.drain_timeout)):
            self.log.warning(
                "%d requests were not answered within %g s and are abandoned.",
                len(self.traffic.requests),
                self.drain_timeout,
            )

    def shutdown(self) -> asyncio.Task[None] | None:
        """Stop the gateway; for programs that run the web application on a loop of their own.

        Within a running loop this returns the task that stops; otherwise it is done on return.
        """
        try:
            return asyncio.get_running_loop().create_task(self.stop())
        except RuntimeError:
            pass
        current = ioloop.IOLoop.current(instance=False)
        if current is None:
            asyncio.run(self.stop())
        else:
            current.run_sync(self.stop)
        return None

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._stop_on_signal, signal.SIGTERM)
        loop.add_signal_handler(signal.SIGINT, self._stop_on_signal, signal.SIGINT)

    def _stop_on_signal(self, signum: signal.Signals) -> None:
        assert self._stop_requested is not None
        if self._stop_requested.is_set() and signum == signal.SIGINT:
            self.log.critical("Interrupted again: ending at once; kernels may be left running.")
            os._exit(128 + signum)
        self.log.info("Received %s, stopping.", signum.name)
        self.request_stop()

    async def _warm_up(self) -> None:
        """Read the kernelspecs before the first request, and log those whose launchers cannot prove who they are."""
        snapshot = await self.kernel_spec_cache.snapshot()
        names = await offload(unproven_kernelspecs, snapshot.items) if self.allow_payload_v1 else []
        if names:
            self.log.info(
                "Reports of payload version 1 are accepted for kernels of these kernelspecs, so another account on "
                "the kernel's host can report in its place; see allow_payload_v1: %s",
                ", ".join(names),
            )

    def _emit_conflict(self, conflict: Conflict) -> None:
        """Emit an event when two launchers have reported for one kernel; called by the response server."""
        if self.event_logger is not None:
            self.event_logger.emit(schema_id=LAUNCH_CONFLICT, data=asdict(conflict))

    def _log_failed_warm_up(self, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.log.warning("Kernelspecs could not be read: %s", task.exception())

    def _warn_of_risks(self) -> None:
        if not self.auth_token and not self.client_ca and not is_loopback(self.ip):
            self.log.warning(
                "The gateway serves %s without auth_token: anyone who reaches it can run code here, unless a proxy in "
                "front of it restricts access. Requests for a host name other than %s are refused unless it is in "
                "allowed_hosts.",
                self.ip or "all addresses",
                " or ".join(sorted(own_names() | {"localhost"})),
            )
        if self.allow_credentials and self.allow_origin == "*":
            self.log.warning("allow_credentials with allow_origin '*' lets every web page use the gateway.")
        if self.impersonation_enabled and gateway_user() not in self.unauthorized_users:
            self.log.warning(
                "Impersonation is enabled and the gateway's user '%s' is not among unauthorized_users: kernels may run "
                "with the gateway's own rights.",
                gateway_user(),
            )

    @classmethod
    def launch_instance(cls, argv: list[str] | None = None, **kwargs: Any) -> None:
        """Make the application, initialize and start it; the console script.

        SIGTERM ends the program with exit code 0 also before ``serve`` deals with it, and is ignored after that.
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        app = cls.instance(**kwargs)
        try:
            app.initialize(argv)
            app.start()
        except NoStart:
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def url_path(base_url: str) -> str:
    """Return the option ``base_url`` as the path of a URL: percent-encoded, with a slash at both ends."""
    path = quote(base_url.strip("/"), safe="/%:@!$&'()*+,;=~")
    return f"/{path}/" if path else "/"


def path_pattern(path: str) -> str:
    """Return the regular expression of a URL's path: encoded bytes in either case, or unencoded as curl sends them."""

    def either_form(match: re.Match[str]) -> str:
        digits = match[1]
        byte = int(digits, 16)
        return f"(?:%(?i:{digits})|\\x{digits})" if byte >= 0x80 else f"%(?i:{digits})"

    return re.sub("%([0-9A-Fa-f]{2})", either_form, re.escape(path))


def candidate_ports(port: int, count: int) -> Iterator[int]:
    """Yield ``count`` ports to try: ``port``, those that follow it, then random ones nearby."""
    for attempt in range(count):
        candidate = port + attempt
        if attempt > 5 or candidate > 65535:
            candidate = port + random.randint(-2 * count, 2 * count)  # noqa: S311 - spreads, hides nothing
        yield max(1, min(65535, candidate)) if attempt else port


def open_file_limit() -> int:
    """Return how many files this process may have open."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def raise_open_file_limit(log: Any) -> None:
    """Allow this process as many open files as it may have: every kernel and client needs some."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        log.debug("The limit of %d open files could not be raised to %d: %s", soft, hard, error)


launch_instance = EnterpriseGatewayApp.launch_instance
