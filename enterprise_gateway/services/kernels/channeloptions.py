"""The options for what passes between clients and kernels."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Float, List, Unicode

from ...core import envvars
from ...core.options import EnvironmentDefaults
from ...transport.limits import ChannelLimits


class ChannelOptions(EnvironmentDefaults):
    """What applies to the channels of every kernel: options of RemoteMappingKernelManager."""

    kernel_info_timeout = Float(
        envvars.EG_KERNEL_INFO_TIMEOUT.default,
        config=True,
        help="""Seconds that a new kernel may take to answer for the first time. Its websockets wait for that before
        they open; afterwards clients' messages are passed on to it anyway.""",
    ).tag(env=envvars.EG_KERNEL_INFO_TIMEOUT)
    buffer_offline_messages = Bool(
        True, config=True, help="Whether messages are kept for clients while their websocket is away."
    )
    allowed_message_types = List(
        Unicode(), config=True, help="Types of messages that clients may send; empty allows all."
    )
    allow_tracebacks = Bool(True, config=True, help="Whether clients see the traceback of errors in their code.")
    traceback_replacement_message = Unicode(
        "An exception occurred at runtime, which is not shown due to security reasons.",
        config=True,
        help="Shown instead of a traceback when allow_tracebacks is off.",
    )

    def channel_limits(self, gateway: Any) -> ChannelLimits:
        """Return what applies to the channels of the next kernel; ``gateway`` carries the options of the gateway."""
        return ChannelLimits(
            replay=gateway.replay_limit if self.buffer_offline_messages else 0,
            max_message=gateway.ws_max_message_size,
            info_timeout=self.kernel_info_timeout,
            allowed_message_types=frozenset(self.allowed_message_types),
            allow_tracebacks=self.allow_tracebacks,
            traceback_replacement=self.traceback_replacement_message,
        )
