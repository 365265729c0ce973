"""Sockets to launchers and kernels (layer 1): the response listener, comm ports, tunnels, kernel channels.

Knows ``core`` and nothing above it: no kernel manager, no process proxy, no HTTP handler.
"""
