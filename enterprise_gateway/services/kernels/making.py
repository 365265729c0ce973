"""Finds kernelspecs and makes kernels' managers of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager, NoSuchKernel

from ...core.errors import BrokenKernelSpecError, UnknownKernelSpecError
from ...core.offload import offload

if TYPE_CHECKING:
    from ..kernelspecs.kernelspec_cache import KernelSpecCache
    from .remotekernel import RemoteKernelManager


class KernelMaker:
    """Makes managers that neither have a process nor are in the table yet.

    Parameters
    ----------
    specs
        Returns the manager of kernelspecs.
    cache
        Returns what has read kernelspecs already; None when there is no such cache.
    new_manager
        Returns a manager for the name of a kernelspec and the path of a connection file.
    directory
        Returns where connection files are.
    """

    def __init__(
        self,
        *,
        specs: Callable[[], KernelSpecManager | None],
        cache: Callable[[], KernelSpecCache | None],
        new_manager: Callable[[str, str], RemoteKernelManager],
        directory: Callable[[], Path],
    ) -> None:
        self._specs = specs
        self._cache = cache
        self._new_manager = new_manager
        self._directory = directory

    async def find_spec(self, name: str) -> tuple[str, KernelSpec]:
        """Return the name that a kernelspec is installed under, and the kernelspec.

        Raises
        ------
        BrokenKernelSpecError
            It cannot be used.
        UnknownKernelSpecError
            There is none of this name, or it is not allowed.
        """
        name = NATIVE_KERNEL_NAME if name == "python" else name
        try:
            return name, await self._read_spec(name)
        except BrokenKernelSpecError:
            raise
        except NoSuchKernel as error:
            raise UnknownKernelSpecError(
                f"No kernelspec named {name[:100]!r} is installed; GET /api/kernelspecs lists those there are."
            ) from error

    async def _read_spec(self, name: str) -> KernelSpec:
        specs, cache = self._specs(), self._cache()
        assert specs is not None
        allowed = specs.allowed_kernelspecs
        if allowed and name.lower() not in {entry.lower() for entry in allowed}:
            raise NoSuchKernel(name)
        spec: KernelSpec = await (cache.get_kernel_spec(name) if cache else offload(specs.get_kernel_spec, name))
        return spec

    def make(self, kernel_id: str, name: str, spec: KernelSpec) -> RemoteKernelManager:
        """Return the manager of a kernel."""
        kernel = self._new_manager(name, str(self._directory() / f"kernel-{kernel_id}.json"))
        kernel.kernel_id = kernel_id
        kernel._kernel_spec = spec  # read in a thread already; the property would read it again on the loop
        return kernel

    async def make_of_name(self, kernel_id: str, name: str) -> RemoteKernelManager:
        """Return the manager of a kernel that is recorded with the name of its kernelspec."""
        return self.make(kernel_id, *await self.find_spec(name))
