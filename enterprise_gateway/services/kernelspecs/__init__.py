"""Kernelspecs: the cache in front of jupyter_client's manager, and their routes."""

from __future__ import annotations

from .kernelspec_cache import KernelSpecCache

__all__ = ["KernelSpecCache"]
