"""Warnings in the log are failures unless a test says that it expects them."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

WATCHED_LOGGERS = (
    "enterprise_gateway",
    "EnterpriseGatewayApp",
    "traitlets",  # what has options but was made before there was an application
    "asyncio",
    "tornado.application",
    "tornado.general",
)


class LogWatch:
    """Collects what the watched loggers say at warning level and above.

    It hears records where they are made: an application takes its logger out of reach of the root logger's handlers,
    and replaces the handlers that it finds there.
    """

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear all records of this process in the block."""
        make_record = logging.getLogRecordFactory()

        def heard(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = make_record(*args, **kwargs)
            self._hear(record)
            return record

        logging.setLogRecordFactory(heard)
        try:
            yield
        finally:
            logging.setLogRecordFactory(make_record)

    def _hear(self, record: logging.LogRecord) -> None:
        is_ours = any(record.name == name or record.name.startswith(name + ".") for name in WATCHED_LOGGERS)
        if is_ours and record.levelno >= logging.WARNING:
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
