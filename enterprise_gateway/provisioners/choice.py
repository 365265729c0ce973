"""Which provisioner a kernel gets."""

from __future__ import annotations

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from ..core.errors import KernelLaunchError
from ..core.offload import offload
from ..services.processproxies.launchedkernel import LaunchedKernel
from .adapter import ProcessProxyProvisioner
from .foreign import ForeignProcess
from .kernelprocess import KernelProcess


async def make_process(manager: AsyncKernelManager, kernel: LaunchedKernel) -> KernelProcess:
    """Return the adapter to the kernel's process proxy, or the provisioner that its kernelspec names.

    Raises
    ------
    KernelLaunchError
        No such provisioner is installed.
    """
    spec = kernel.spec
    names = {"kernel_id": kernel.kernel_id, "kernel_spec": spec, "parent": manager}
    if not spec.metadata.get("kernel_provisioner"):
        return ProcessProxyProvisioner(kernel=kernel, **names)
    try:
        # In a thread: the first of them reads what all installed packages offer.
        factory = await offload(KernelProvisionerFactory.instance, parent=manager.parent)
        provisioner = await offload(factory.create_provisioner_instance, kernel.kernel_id, spec, parent=manager)
    except ModuleNotFoundError as error:
        raise KernelLaunchError(f"Kernelspec {kernel.kernel_name!r} cannot be used: {error}") from error
    return ForeignProcess(provisioner, kernel, **names)
