"""The papermill engine ``enterprise_gateway``: ``papermill --engine enterprise_gateway in.ipynb out.ipynb``.

Papermill finds it by its entry point. papermill itself is imported when the engine is used, because it loads its
engines during its own import.
"""

from __future__ import annotations

from typing import Any

from .kernelmanager import GatewayKernelManager


class GatewayEngine:
    """Papermill's own engine, with kernels that run on a gateway."""

    @staticmethod
    def execute_notebook(nb: Any, kernel_name: str, **kwargs: Any) -> Any:
        """Execute a notebook; the parameters are those of papermill's ``nbclient`` engine."""
        return _nbclient_engine().execute_notebook(
            nb, kernel_name, **{"kernel_manager_class": GatewayKernelManager, **kwargs}
        )

    @staticmethod
    def nb_kernel_name(nb: Any, name: str | None = None) -> Any:
        """Return the kernelspec's name that the notebook or the caller specifies."""
        return _nbclient_engine().nb_kernel_name(nb, name)

    @staticmethod
    def nb_language(nb: Any, language: str | None = None) -> Any:
        """Return the language that the notebook or the caller specifies."""
        return _nbclient_engine().nb_language(nb, language)


def _nbclient_engine() -> Any:
    from papermill.engines import NBClientEngine

    return NBClientEngine
