"""The table of the kernels that this gateway manages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core.errors import NotFoundError

if TYPE_CHECKING:
    from .remotekernel import RemoteKernelManager


class KernelTable:
    """The managers of all kernels by id, in the order of their start.

    Nothing else touches the dictionary of jupyter_client's ``MultiKernelManager``, whose own methods need it.

    Parameters
    ----------
    kernels
        That dictionary.
    """

    def __init__(self, kernels: dict[str, RemoteKernelManager]) -> None:
        self._kernels = kernels

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._kernels

    def __iter__(self) -> Iterator[RemoteKernelManager]:
        """Iterate over the managers there are now, whatever is entered and removed meanwhile."""
        return iter(list(self._kernels.values()))

    def ids(self) -> list[str]:
        """Return the ids of all kernels."""
        return list(self._kernels)

    def get(self, kernel_id: str) -> RemoteKernelManager | None:
        """Return a kernel's manager, None when there is no such kernel."""
        return self._kernels.get(kernel_id)

    def find(self, kernel_id: str) -> RemoteKernelManager:
        """Return a kernel's manager.

        Raises
        ------
        NotFoundError
            There is no such kernel.
        """
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}")
        return kernel

    def has(self, kernel: RemoteKernelManager) -> bool:
        """Whether this manager, and no other one, stands for its kernel."""
        return self._kernels.get(str(kernel.kernel_id)) is kernel

    def enter(self, kernel: RemoteKernelManager) -> None:
        """Enter a kernel that is managed from now on."""
        self._kernels[str(kernel.kernel_id)] = kernel

    def replace(self, former: RemoteKernelManager, kernel: RemoteKernelManager) -> None:
        """Have another manager stand for a kernel, in the place of the former one."""
        self._kernels[str(former.kernel_id)] = kernel

    def remove(self, kernel_id: str) -> RemoteKernelManager | None:
        """Take a kernel out of the table and return its manager, None when it was not there."""
        return self._kernels.pop(kernel_id, None)
