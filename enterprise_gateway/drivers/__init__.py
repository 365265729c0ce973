"""Vendor libraries (layer 1): one module per library, synchronous, each call with its own time-out.

The only place where paramiko, kubernetes, docker, yarn-api-client and requests are imported, and then only when
the module is used. Callers hand these calls to threads with :func:`enterprise_gateway.core.offload.offload`.
"""
