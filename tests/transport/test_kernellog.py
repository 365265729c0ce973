"""Lines about one kernel say which."""

from __future__ import annotations

import logging

import pytest

from enterprise_gateway.transport.kernellog import KernelLog
from enterprise_gateway.transport.ratelimit import RateLimitedWarnings

KERNEL = "0b2c9e1e-6a55-4b5c-8f0e-2f6f6a2f2f10"


def test_each_line_names_the_kernel(caplog: pytest.LogCaptureFixture) -> None:
    """Also one with arguments, one about an exception, and one that is logged at a bounded rate."""
    log = KernelLog(logging.getLogger("relay"), KERNEL)
    log.warning("%d messages were dropped", 3)
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("A message could not be handled")
    warnings = RateLimitedWarnings(log)
    for _ in range(3):
        warnings.warn("A message of %d bytes was dropped", 5)

    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"Kernel {KERNEL}: 3 messages were dropped",
        f"Kernel {KERNEL}: A message could not be handled",
        f"Kernel {KERNEL}: A message of 5 bytes was dropped",
    ]
    assert caplog.records[1].exc_info is not None
