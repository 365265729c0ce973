"""Jupyter Enterprise Gateway: kernels started where the resources are, reached through one server."""

from ._version import __version__

__all__ = ["__version__"]
