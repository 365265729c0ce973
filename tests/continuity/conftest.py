"""What the gateway's own logger says can be expected as well: its messages do not reach the root logger."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from tests.conftest import ExpectLog
from tests.support.logs import LogWatch


@pytest.fixture
def expect_log(_log_watch: LogWatch) -> ExpectLog:
    """Return the suite's ``expect_log``, which in its block hears the application's logger too."""

    @contextlib.contextmanager
    def expect(pattern: str) -> Iterator[list[logging.LogRecord]]:
        logger = logging.getLogger("EnterpriseGatewayApp")
        logger.addHandler(_log_watch)
        try:
            with _log_watch.expect(pattern) as records:
                yield records
        finally:
            logger.removeHandler(_log_watch)

    return expect
