"""Every test of this directory is a fuzz target: hypothesis makes up what an outsider might send.

``make test`` tries the same few hundred inputs each time. With ``FUZZ_SECONDS`` each target tries new ones for so long;
what has failed once is kept in ``.hypothesis`` and tried first the next time.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0)
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
SHORT = settings(_COMMON, max_examples=200, derandomize=True, database=None)
LONG = settings(_COMMON, max_examples=2_000, print_blob=True)
_SPARE_SECONDS = 120.0  # for the round in progress when the time is over, and for making a failing input smaller


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say how many inputs each target tries, and how long it may take."""
    for item in items:
        if isinstance(item, pytest.Function) and _is_target(item):
            (LONG if SECONDS else SHORT)(item.obj)
            if SECONDS:
                item.add_marker(pytest.mark.timeout(SECONDS + _SPARE_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Let a target try new inputs until its time is over."""
    if not SECONDS or not _is_target(pyfuncitem):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pyfuncitem.obj(**arguments)
        gc.collect()
    return True


@pytest.fixture(autouse=True)
def _no_collection_in_the_depth() -> Iterator[None]:
    """Keep the collector, and what tests/support/loops.py has it call, from running where a recursion ends."""
    gc.disable()
    yield
    gc.enable()


def _is_target(item: pytest.Function) -> bool:
    return item.path.parent.name == "fuzz" and hasattr(item.obj, "hypothesis")
