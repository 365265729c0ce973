"""The documentation's example as a class that lets a test see the kernel that is starting."""

from __future__ import annotations

from typing import Any

from slurm_proxy import SlurmProcessProxy

from enterprise_gateway.core.states import Phase

proxies: dict[str, ObservedSlurmProxy] = {}


class ObservedSlurmProxy(SlurmProcessProxy):
    """Can be found by its kernel's id from the beginning."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        proxies[self.kernel_id] = self


def phases(kernel_id: str) -> dict[Phase, str]:
    """Return the phases that a kernel's start has reached, each with what was said of it last."""
    return {step.phase: step.detail for step in proxies[kernel_id].progress.steps}
