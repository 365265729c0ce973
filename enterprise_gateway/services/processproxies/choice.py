"""The back end and the launch settings that a kernelspec configures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from traitlets.utils.importstring import import_item

from ...core import envvars, kernelargs
from ...core.errors import InvalidRequestError, KernelLaunchError
from ...core.offload import offload
from .contract import BaseProcessProxyABC, gateway_user
from .launchedkernel import LaunchedKernel

LOCAL_PROXY = "enterprise_gateway.services.processproxies.processproxy.LocalProcessProxy"

_imported: dict[str, type[BaseProcessProxyABC]] = {}


async def make_process_proxy(kernel: LaunchedKernel) -> BaseProcessProxyABC:
    """Return the process proxy that a kernel's kernelspec names, LocalProcessProxy when it names none.

    Raises
    ------
    KernelLaunchError
        The class cannot be imported.
    """
    stanza = process_proxy_config(kernel.spec)
    name = stanza["class_name"]
    try:
        proxy_class = _imported[name] if name in _imported else await offload(_import_class, name)
    except ImportError as error:
        raise KernelLaunchError(
            f"Process proxy {name!r} of kernelspec {kernel.kernel_name!r} cannot be imported: {error}"
        ) from error
    proxy: BaseProcessProxyABC = proxy_class(kernel_manager=kernel, proxy_config=stanza["config"])
    return proxy


def _import_class(name: str) -> type[BaseProcessProxyABC]:
    """Import a class, and cache the user name that its constructor needs; runs in a thread, as both read files."""
    gateway_user()
    proxy_class: type[BaseProcessProxyABC] = import_item(name)
    _imported[name] = proxy_class
    return proxy_class


def process_proxy_config(kernel_spec: KernelSpec) -> dict[str, Any]:
    """Return ``{"class_name": …, "config": {…}}`` of a kernelspec, with defaults filled in."""
    stanza = kernel_spec.metadata.get("process_proxy") or {}
    return {"class_name": stanza.get("class_name") or LOCAL_PROXY, "config": stanza.get("config") or {}}


def launch_timeout(kernel_spec: KernelSpec, env: Mapping[str, str]) -> float:
    """Return the launch time-out in seconds, from the request's variables, the kernelspec or the gateway."""
    asked_for = env.get("KERNEL_LAUNCH_TIMEOUT") or kernel_spec.env.get("KERNEL_LAUNCH_TIMEOUT")
    if asked_for:
        return kernelargs.check_launch_timeout(asked_for)
    config = (kernel_spec.metadata.get("kernel_provisioner") or process_proxy_config(kernel_spec)).get("config") or {}
    return float(config.get("launch_timeout") or envvars.EG_KERNEL_LAUNCH_TIMEOUT())


def check_argv(argv: Sequence[str], kernel_name: str) -> None:
    """Refuse a kernelspec without a command."""
    if not argv:
        raise InvalidRequestError(f"Kernelspec {kernel_name!r} has an empty argv.")
