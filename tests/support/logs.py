"""Warnings in the log are failures unless a test says that it expects them."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

WATCHED_LOGGERS = ("enterprise_gateway", "EnterpriseGatewayApp", "asyncio", "tornado.application", "tornado.general")


class LogWatch(logging.Handler):
    """Collects what the watched loggers say at warning level and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record if its logger is one of ours."""
        if any(record.name == name or record.name.startswith(name + ".") for name in WATCHED_LOGGERS):
            self.records.append(record)

    @contextlib.contextmanager
    def expect(self, pattern: str, *, required: bool = True) -> Iterator[list[logging.LogRecord]]:
        """Allow messages that match ``pattern`` (searched) in the block; at least one must come if ``required``.

        Yields a list that holds the matching records after the block.
        """
        start, matching = len(self.records), list[logging.LogRecord]()
        yield matching
        recent = self.records[start:]
        matching.extend(record for record in recent if re.search(pattern, record.getMessage()))
        self.records[start:] = [record for record in recent if record not in matching]
        assert matching or not required, f"no log message matched {pattern!r}; there were {self.sentences()}"

    def sentences(self) -> list[str]:
        """Return a line for each record that nobody expected."""
        formatter = logging.Formatter("unexpected log message: %(levelname)s %(name)s: %(message)s")
        return [formatter.format(record) for record in self.records]
