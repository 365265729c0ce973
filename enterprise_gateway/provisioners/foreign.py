"""Provisioners that are not ours, as the gateway uses them: its rules for users and environments hold for them, too."""

from __future__ import annotations

from typing import Any

from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from ..core import kernelenv
from ..core.authorization import UserRules
from ..core.offload import uninterrupted
from ..services.processproxies.contract import gateway_user
from ..services.processproxies.launchedkernel import LaunchedKernel
from ..services.processproxies.shared import gateway_environment
from .kernelprocess import KernelProcess


class ForeignProcess(KernelProcess):
    """A kernel of a provisioner that its kernelspec names (``metadata.kernel_provisioner``).

    Parameters
    ----------
    provisioner
        The provisioner, which gets all calls.
    kernel
        The kernel that it is for.
    """

    def __init__(self, provisioner: KernelProvisionerBase, kernel: LaunchedKernel, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._provisioner = provisioner
        self._kernel = kernel

    @property
    def has_process(self) -> bool:
        """Whether the provisioner has a process."""
        return self._provisioner.has_process

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Authorize the user, build the environment, and have the provisioner prepare the launch.

        Raises
        ------
        LaunchRefusedError
            The user may not start this kernel.
        """
        try:
            return await self._prepare(**kwargs)
        except BaseException:
            await uninterrupted(self.undo_launch())
            raise

    async def _prepare(self, **kwargs: Any) -> dict[str, Any]:
        options, spec = self._kernel.options, self._kernel.spec
        client = kwargs.pop("env", None) or {}
        kwargs.pop("kernel_headers", None)
        username = client.get("KERNEL_USERNAME") or gateway_user()
        config = spec.metadata["kernel_provisioner"].get("config") or {}
        rules = UserRules.for_spec(config, options.authorized_users, options.unauthorized_users)
        rules.check_launch(username, spec.display_name)
        env = kernelenv.build(
            process=gateway_environment(),
            client=client,
            spec=spec.env,
            client_envs=options.client_envs,
            inherited_envs=options.inherited_envs,
        )
        kernelenv.finish(
            env,
            kernel_id=self._kernel.kernel_id,
            language=spec.language,
            impersonation_enabled=options.impersonation_enabled,
            username=username,
        )
        prepared: dict[str, Any] = await self._provisioner.pre_launch(**kwargs, env=env)
        return prepared

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Launch the kernel."""
        try:
            return await self._provisioner.launch_kernel(cmd, **kwargs)
        except BaseException:
            await uninterrupted(self.undo_launch())
            raise

    async def post_launch(self, **kwargs: Any) -> None:
        """Do what is left to do after the launch."""
        await self._provisioner.post_launch(**kwargs)

    async def poll(self) -> int | None:
        """Return None while the kernel lives."""
        return await self._provisioner.poll()

    async def wait(self) -> int | None:
        """Wait until the kernel has ended."""
        return await self._provisioner.wait()

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel."""
        await self._provisioner.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """End the kernel for certain."""
        await self._provisioner.kill(restart=restart)

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel to end."""
        await self._provisioner.terminate(restart=restart)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Tell that the kernel has been asked to shut down."""
        await self._provisioner.shutdown_requested(restart=restart)

    async def cleanup(self, restart: bool = False) -> None:
        """Release what the launch acquired."""
        await self._provisioner.cleanup(restart=restart)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what a later gateway needs to take the kernel over."""
        return await self._provisioner.get_provisioner_info()

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over a kernel of an earlier gateway."""
        await self._provisioner.load_provisioner_info(provisioner_info)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Return how long the kernel may take to shut down."""
        return self._provisioner.get_shutdown_wait_time(recommended)

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """Return after which time the kernel counts as running."""
        return self._provisioner.get_stable_start_time(recommended)

    def resolve_path(self, path: str) -> str | None:
        """Return where a path of the kernel's is for the gateway."""
        return self._provisioner.resolve_path(path)
