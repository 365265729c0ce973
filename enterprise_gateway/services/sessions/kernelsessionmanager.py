"""Kernel sessions: the records that let kernels outlive the gateway, and the stores that keep them."""

from __future__ import annotations

from .basemanager import KernelSessionManager
from .filemanager import FileKernelSessionManager
from .sessionstore import SessionStore, Unreadable
from .sqlmanager import SQLKernelSessionManager
from .storemanager import StoreKernelSessionManager
from .webhookmanager import WebhookKernelSessionManager

__all__ = [
    "FileKernelSessionManager",
    "KernelSessionManager",
    "SQLKernelSessionManager",
    "SessionStore",
    "StoreKernelSessionManager",
    "Unreadable",
    "WebhookKernelSessionManager",
]
