"""Kernelspecs: a cache in front of jupyter_client's manager, and the HTTP routes."""

from __future__ import annotations

from .kernelspec_cache import KernelSpecCache

__all__ = ["KernelSpecCache"]
