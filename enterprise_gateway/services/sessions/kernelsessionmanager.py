"""Kernel sessions: what is kept of kernels so that they outlive the gateway, and where it is kept."""

from __future__ import annotations

from .basemanager import KernelSessionManager
from .filemanager import FileKernelSessionManager
from .sqlmanager import SQLKernelSessionManager
from .webhookmanager import WebhookKernelSessionManager

__all__ = [
    "FileKernelSessionManager",
    "KernelSessionManager",
    "SQLKernelSessionManager",
    "WebhookKernelSessionManager",
]
