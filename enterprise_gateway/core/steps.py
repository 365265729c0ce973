"""Ending many things, of which some may fail to end."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any


async def take_all(
    steps: Iterable[Callable[[], Any]],
    what: str,
    log: logging.Logger | logging.LoggerAdapter[Any],
    patience: float | None = None,
) -> None:
    """Take steps one after the other, each whatever the others raise; called when the gateway ends.

    Parameters
    ----------
    steps
        Functions or coroutine functions.
    what
        What does not end cleanly when a step fails: the beginning of the log line.
    patience
        Seconds after which a step that has not ended is cancelled and not waited for any more.
    """
    for step in steps:
        try:
            result = step()
            if inspect.isawaitable(result) and patience is None:
                await result
            elif inspect.isawaitable(result):
                task = asyncio.ensure_future(result)
                if not (await asyncio.wait([task], timeout=patience))[0]:
                    task.cancel()
                    raise TimeoutError(f"it has not ended within {patience:g} seconds")
                task.result()
        except Exception:
            log.exception("%s did not end cleanly; the rest continues", what)
