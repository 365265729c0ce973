"""Where process proxies meet jupyter_client: the adapter that makes any process proxy a kernel provisioner."""

from .adapter import ProcessProxyProvisioner

__all__ = ["ProcessProxyProvisioner"]
