"""Every error the gateway raises on purpose, each with the HTTP status its client gets.

::

    GatewayError                     500  base; ``str(error)`` is one sentence for the client
    ├── InvalidRequestError          400  the request's body, environment, id or time-out is not usable
    ├── NotFoundError                404  no such kernel or session
    │   └── UnknownKernelSpecError   404  no kernelspec of that name
    ├── ConflictError                409  the kernel id is taken, or the kernel is being shut down
    │   └── LeaseLostError           409  another replica owns the kernel now
    ├── BrokenKernelSpecError        500  a kernelspec's kernel.json cannot be used
    ├── StoreUnavailableError        503  the kernel session store did not answer
    ├── PayloadError                 500  a launcher's response could not be used (never sent to clients)
    └── KernelLaunchError            500  a launch failed
        ├── LaunchRefusedError       403  user not authorized, uid or gid prohibited
        ├── LimitReachedError        403  max_kernels or max_kernels_per_user
        ├── HostAuthenticationError  403  the remote host refused our credentials or its host key is unknown
        ├── PortRangeError           500  the port range is malformed, too small or used up
        ├── HostUnreachableError     500  no candidate host could be reached
        ├── LaunchTimeoutError       500  the launcher did not report within the launch time-out
        ├── LauncherFailedError      500  the launcher ended early; carries its last output lines
        └── ResourcesUnavailableError 503 the cluster has no room for the kernel now

A vendor's exception is always chained as ``__cause__``; it is logged once, where the error is handled, and
never shown to a client.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Base of all errors below; ``status`` is the HTTP status that handlers answer with."""

    status = 500


class InvalidRequestError(GatewayError):
    """Something the client sent cannot be used; the message says what to change."""

    status = 400


class NotFoundError(GatewayError):
    """The kernel or session that the client named does not exist."""

    status = 404


class UnknownKernelSpecError(NotFoundError):
    """No kernelspec of the requested name is installed or allowed."""


class BrokenKernelSpecError(GatewayError):
    """A ``kernel.json`` cannot be used; the message names the file and says what to mend there."""


class ConflictError(GatewayError):
    """The request contradicts the present state: a kernel id in use, a kernel that is going away."""

    status = 409


class LeaseLostError(ConflictError):
    """A write came with an old fencing token: another replica has taken the kernel over and this one must let go."""


class StoreUnavailableError(GatewayError):
    """The kernel session store failed or did not answer in time; nothing was deleted because of it."""

    status = 503


class PayloadError(GatewayError):
    """A launcher's response is malformed, not authentic or not expected; it is dropped and logged.

    ``kernel_id`` is the kernel that the response names, where that is known.
    """

    kernel_id = ""


class KernelLaunchError(GatewayError):
    """A kernel could not be started; nothing of the attempt is left behind."""


class LaunchRefusedError(KernelLaunchError):
    """The user, uid or gid may not start this kernel."""

    status = 403


class LimitReachedError(KernelLaunchError):
    """Starting one more kernel would exceed a limit."""

    status = 403


class HostAuthenticationError(KernelLaunchError):
    """A remote host refused our credentials, or its host key is not the known one."""

    status = 403


class PortRangeError(KernelLaunchError):
    """A port range is malformed, outside 1024..65535, too small, or has no free port left."""


class HostUnreachableError(KernelLaunchError):
    """None of the candidate hosts could be reached; the message names each host's reason."""


class LaunchTimeoutError(KernelLaunchError):
    """The kernel did not report its connection information within the launch time-out."""


class LauncherFailedError(KernelLaunchError):
    """The launcher process ended before it reported; the message ends with its last output lines."""


class ResourcesUnavailableError(KernelLaunchError):
    """The cluster has no resources for the kernel now; trying again later may succeed."""

    status = 503
