"""The mixins under their public import path."""

from __future__ import annotations

from .base.mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin
from .config import EnterpriseGatewayConfigMixin

__all__ = ["CORSMixin", "EnterpriseGatewayConfigMixin", "JSONErrorsMixin", "TokenAuthorizationMixin"]
