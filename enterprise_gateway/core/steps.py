"""Ending many things, of which some may fail to end."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any


async def take_all(
    steps: Iterable[Callable[[], Any]], what: str, log: logging.Logger | logging.LoggerAdapter[Any]
) -> None:
    """Take steps one after the other, each whatever the others raise; called when the gateway ends.

    Parameters
    ----------
    steps
        Functions or coroutine functions.
    what
        What does not end in order when a step fails: the beginning of the log line.
    """
    for step in steps:
        try:
            result = step()
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("%s did not end in order; the rest does", what)
