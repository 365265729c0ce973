"""A client for scripts and integration tests; see :mod:`enterprise_gateway.client.gateway_client`."""
