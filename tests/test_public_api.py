"""Names, classes and signatures that version 3 offered, or the documentation does, stay where they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

PACKAGE = "enterprise_gateway"
PROXIES = f"{PACKAGE}.services.processproxies"
SESSIONS = f"{PACKAGE}.services.sessions"
KERNELS = f"{PACKAGE}.services.kernels"

NAMES = {
    PACKAGE: ["__version__"],
    f"{PACKAGE}.enterprisegatewayapp": ["EnterpriseGatewayApp", "launch_instance"],
    f"{PACKAGE}.mixins": [
        "CORSMixin",
        "EnterpriseGatewayConfigMixin",
        "JSONErrorsMixin",
        "TokenAuthorizationMixin",
    ],
    f"{PACKAGE}.client.gateway_client": ["GatewayClient", "KernelClient"],
    f"{PACKAGE}.client.kernelclient": ["GatewayKernelClient"],
    f"{PACKAGE}.client.kernelmanager": ["GatewayError", "GatewayKernelManager"],
    f"{PACKAGE}.client.papermill_engine": ["GatewayEngine"],
    f"{PACKAGE}.services.kernelspecs": ["KernelSpecCache"],
    f"{KERNELS}.handlers": ["MainKernelHandler"],
    f"{KERNELS}.remotemanager": [
        "RemoteKernelManager",
        "RemoteMappingKernelManager",
        "TrackPendingRequests",
        "get_process_proxy_config",
        "import_item",
        "new_kernel_id",
    ],
    f"{SESSIONS}.kernelsessionmanager": [
        "FileKernelSessionManager",
        "KernelSessionManager",
        "WebhookKernelSessionManager",
    ],
    f"{SESSIONS}.sessionmanager": ["SessionManager"],
    f"{PROXIES}.processproxy": ["BaseProcessProxyABC", "LocalProcessProxy", "RemoteProcessProxy", "ResponseManager"],
    f"{PROXIES}.distributed": ["DistributedProcessProxy"],
}

# parameters of functions and constructors that others call: names in order, without self
SIGNATURES = {
    f"{KERNELS}.remotemanager:get_process_proxy_config": ["kernelspec"],
    f"{KERNELS}.remotemanager:new_kernel_id": [],
    f"{KERNELS}.remotemanager:import_item": ["name"],
    f"{PROXIES}.processproxy:BaseProcessProxyABC": ["kernel_manager", "proxy_config"],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.launch_process": ["kernel_cmd"],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.poll": [],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.wait": [],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.send_signal": ["signum"],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.kill": [],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.terminate": [],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.cleanup": [],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.get_process_info": [],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.load_process_info": ["process_info"],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.select_ports": ["count"],
    f"{PROXIES}.processproxy:BaseProcessProxyABC.log_and_raise": ["http_status_code", "reason"],
    f"{PROXIES}.processproxy:RemoteProcessProxy.confirm_remote_startup": [],
    f"{PROXIES}.processproxy:RemoteProcessProxy.handle_timeout": [],
    f"{PROXIES}.processproxy:RemoteProcessProxy.receive_connection_info": [],
    f"{PROXIES}.processproxy:RemoteProcessProxy.detect_launch_failure": [],
    f"{PROXIES}.processproxy:RemoteProcessProxy.shutdown_listener": [],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.create_session": ["kernel_id"],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.delete_session": ["kernel_id"],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.load_session": ["kernel_id"],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.load_sessions": [],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.save_session": ["kernel_id"],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.delete_sessions": ["kernel_ids"],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.pre_save_transformation": ["session"],
    f"{SESSIONS}.kernelsessionmanager:KernelSessionManager.post_load_transformation": ["session"],
    f"{PACKAGE}.client.gateway_client:GatewayClient": ["host", "use_secure_connection"],
    f"{PACKAGE}.client.gateway_client:GatewayClient.start_kernel": [
        "kernelspec_name",
        "username",
        "timeout",
        "extra_env",
    ],
    f"{PACKAGE}.client.gateway_client:GatewayClient.shutdown_kernel": ["kernel"],
    f"{PACKAGE}.client.gateway_client:KernelClient.execute": ["code", "timeout"],
    f"{PACKAGE}.client.gateway_client:KernelClient.interrupt": [],
    f"{PACKAGE}.client.gateway_client:KernelClient.restart": ["timeout"],
    f"{PACKAGE}.client.gateway_client:KernelClient.get_state": [],
    f"{PACKAGE}.client.gateway_client:KernelClient.shutdown": [],
    f"{PACKAGE}.client.gateway_client:KernelClient.start_interrupt_thread": ["wait_time"],
    f"{PACKAGE}.client.gateway_client:KernelClient.terminate_interrupt_thread": [],
    f"{PACKAGE}.client.papermill_engine:GatewayEngine.execute_notebook": ["nb", "kernel_name"],
    f"{PACKAGE}.client.papermill_engine:GatewayEngine.nb_kernel_name": ["nb", "name"],
    f"{PACKAGE}.client.papermill_engine:GatewayEngine.nb_language": ["nb", "language"],
}

APPLICATION_ATTRIBUTES = [
    *("AVAILABILITY_REPLICATION", "AVAILABILITY_STANDALONE"),
    *("base_url", "config_file_name", "list_kernels", "load_config_file", "log", "shutdown"),
]

KERNEL_MANAGER_OPTIONS = [
    *("allowed_envs", "auth_token", "ca_certs", "client_cert", "client_key", "connect_timeout", "env", "keep_kernel"),
    *("kernel_id", "launch_timeout", "reconnect_timeout", "request_timeout", "url", "validate_cert"),
]

PROXY_ATTRIBUTES = [
    *("authorized_users", "ip", "kernel_id", "kernel_launch_timeout", "kernel_manager", "local_proc", "log"),
    *("lower_port", "pgid", "pid", "proxy_config", "unauthorized_users", "upper_port"),
]

IMPORTS = [(module, name) for module, names in NAMES.items() for name in names]


@pytest.mark.parametrize(("module", "name"), IMPORTS, ids=[f"{module}.{name}" for module, name in IMPORTS])
def test_the_name_is_where_it_was(module: str, name: str) -> None:
    """Kernelspecs, third-party classes and scripts import it from here."""
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("path", "parameters"), list(SIGNATURES.items()), ids=SIGNATURES)
def test_it_takes_the_parameters_that_it_took(path: str, parameters: list[str]) -> None:
    """Callers pass them by position or by name; more parameters may follow if they are optional."""
    found = list(inspect.signature(resolve(path)).parameters.values())
    found = [parameter for parameter in found if parameter.name != "self"]
    assert [parameter.name for parameter in found[: len(parameters)]] == parameters
    more = [parameter for parameter in found[len(parameters) :] if parameter.kind is not parameter.VAR_KEYWORD]
    assert all(parameter.default is not parameter.empty for parameter in more)


def resolve(path: str) -> object:
    """Return what ``module:Class.method`` names."""
    module, _, qualified = path.partition(":")
    found: object = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", APPLICATION_ATTRIBUTES)
def test_the_application_has_the_attribute(name: str) -> None:
    """Extensions read it from the application."""
    assert hasattr(resolve(f"{PACKAGE}.enterprisegatewayapp:EnterpriseGatewayApp"), name)


@pytest.mark.parametrize("name", KERNEL_MANAGER_OPTIONS)
def test_the_kernel_manager_has_the_option(name: str) -> None:
    """Programs configure it under ``GatewayKernelManager``, as ``docs/users/pipelines.md`` says."""
    assert name in resolve(f"{PACKAGE}.client.kernelmanager:GatewayKernelManager").class_traits(config=True)


def test_the_kernel_manager_makes_the_kernel_client() -> None:
    """Both are those of jupyter_client for every caller, nbclient for instance."""
    manager = resolve(f"{PACKAGE}.client.kernelmanager:GatewayKernelManager")
    assert issubclass(manager, AsyncKernelManager)
    assert manager.client_factory.klass is resolve(f"{PACKAGE}.client.kernelclient:GatewayKernelClient")
    assert issubclass(manager.client_factory.klass, AsyncKernelClient)


def test_papermill_finds_the_engine() -> None:
    """By its entry point."""
    (engine,) = entry_points(group="papermill.engine", name="enterprise_gateway")
    assert engine.load() is resolve(f"{PACKAGE}.client.papermill_engine:GatewayEngine")


def test_the_constants_of_the_client() -> None:
    """Scripts read them from the class."""
    client = resolve(f"{PACKAGE}.client.gateway_client:KernelClient")
    assert (client.POST_IDLE_TIMEOUT, client.DEFAULT_INTERRUPT_WAIT) == (0.5, 1)
    assert client.DEAD_MSG_ID


def test_the_availability_modes_are_what_configuration_files_say() -> None:
    """Their text is an interface."""
    app = resolve(f"{PACKAGE}.enterprisegatewayapp:EnterpriseGatewayApp")
    assert (app.AVAILABILITY_STANDALONE, app.AVAILABILITY_REPLICATION) == ("standalone", "replication")


PROBE = """
import sys, threading, logging, os
before = (dict(os.environ), threading.active_count(), list(logging.getLogger().handlers))
import {module}
assert before == (dict(os.environ), threading.active_count(), list(logging.getLogger().handlers))
vendors = {{"docker", "kubernetes", "paramiko", "sqlalchemy", "yarn_api_client", "websocket", "requests"}}
print(sorted(vendors & set(sys.modules)))
"""


@pytest.mark.parametrize("module", [f"{PACKAGE}.enterprisegatewayapp", f"{PROXIES}.distributed"])
def test_import_is_silent_and_light(module: str) -> None:
    """Importing the gateway starts nothing, changes nothing, and loads no vendor's library."""
    code = PROBE.format(module=module)
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_environment_is_read_in_one_place_and_written_nowhere() -> None:
    """``core.envvars`` is the only module that touches ``os.environ``: nothing else depends on it unseen."""
    sources = Path(__file__).parents[1] / PACKAGE
    touching = [
        str(path.relative_to(sources))
        for path in sorted(sources.rglob("*.py"))
        if touches_environment(path.read_text())
    ]
    assert touching == ["core/envvars.py"]


def touches_environment(source: str) -> bool:
    """Whether the code names ``os.environ`` or one of its functions."""
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr in names:
                return True
        elif isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names}:
            return True
    return False
