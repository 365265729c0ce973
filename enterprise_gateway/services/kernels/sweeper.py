"""Finds and removes processes, containers and files that no longer belong to a kernel."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets.utils.importstring import import_item

from ...core.errors import KernelLaunchError
from ...core.offload import offload, offload_to
from ..processproxies.choice import process_proxy_config
from ..processproxies.contract import BaseProcessProxyABC
from ..processproxies.deployment import LABEL_VARIABLE, ended_runs, forget_run
from ..processproxies.remnants import Remnant, local_files, local_processes, owners_of

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpecManager

    from ..processproxies.shared import SharedResources

log = logging.getLogger(__name__)


@dataclass
class SweepReport:
    """What a sweep found and did; reasons are sentences.

    Parameters
    ----------
    found
        What belongs to no kernel.
    failed
        What could not be removed, and why.
    not_asked
        Back ends that could not be asked, and why.
    kept
        How many labelled things belong to kernels.
    """

    found: list[Remnant] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_asked: dict[str, str] = field(default_factory=dict)
    kept: int = 0


class Sweeper:
    """Cleans up after one gateway, or after all that share its store.

    What is labelled by this deployment and belongs to no recorded kernel, or by a run of a gateway without a store
    that has ended, was left behind. What has another label, or none, is never touched.

    Parameters
    ----------
    directory
        The Jupyter runtime directory.
    resources
        What kernels of this gateway share, among it the label of the deployment.
    specs
        The kernelspecs, which name the back ends.
    is_recorded
        Whether kernels are recorded in a store, so that the label stands for those of the store.
    known_kernels
        Returns the ids of the kernels that are recorded, or run in this gateway.
    """

    def __init__(
        self,
        directory: Path,
        resources: SharedResources,
        specs: KernelSpecManager,
        is_recorded: Callable[[], bool],
        known_kernels: Callable[[], Awaitable[set[str]]],
    ) -> None:
        self._directory = directory
        self._resources = resources
        self._specs = specs
        self._is_recorded = is_recorded
        self._known_kernels = known_kernels

    async def sweep(self, dry_run: bool = False) -> SweepReport:
        """Find what was left behind and, unless it is a dry run, remove it.

        Raises
        ------
        StoreUnavailableError
            The recorded kernels are not known; nothing was removed.
        """
        report = SweepReport()
        ended = set(await offload(lambda: list(ended_runs(self._directory))))
        own = await offload(self._own_label)
        things = await self._find(ended | own, report)
        known = await self._known_kernels()  # after the search: what is started meanwhile has not been found
        for label, thing in things:
            if label in own and thing.kernel_id in known:
                report.kept += 1
            else:
                report.found.append(thing)
        if not dry_run:
            await offload_to("sweep", self._remove, report)
            if not report.failed and not report.not_asked:
                for label in ended:
                    await offload(forget_run, self._directory, label)
        return report

    def _own_label(self) -> set[str]:
        """Return the label of the store; a gateway without one knows its own kernels, and others' not at all."""
        if not self._is_recorded():
            return set()
        label = self._resources.deployment.label
        return {label} if label else set()

    async def _find(self, labels: set[str], report: SweepReport) -> list[tuple[str, Remnant]]:
        """Return everything labelled, with its label."""
        found: list[tuple[str, Remnant]] = []
        back_ends = await offload(self._back_ends) if labels else {}
        configs = [config for of_class in back_ends.values() for config in of_class]
        for label in labels:
            found += [(label, thing) for thing in await offload(self._find_here, label, configs)]
            for back_end, configs in back_ends.items():
                try:
                    things = partial(back_end.find_remnants, self._resources, [label], configs)
                    await offload_to(back_end.__qualname__, _collect, things, label, found)
                except Exception as error:  # noqa: BLE001 -- of a third party's back end; the others are asked
                    report.not_asked[back_end.__name__] = _reason(error)
        return found

    def _find_here(self, label: str, configs: list[dict[str, Any]]) -> list[Remnant]:
        owners = owners_of(self._resources, configs)
        processes = local_processes(LABEL_VARIABLE, [label], owners)
        return [*processes, *local_files(self._directory, [label])]

    def _back_ends(self) -> dict[type[BaseProcessProxyABC], list[dict[str, Any]]]:
        """Return the classes that installed kernelspecs name, each with the kernelspecs' configurations of it."""
        back_ends: dict[type[BaseProcessProxyABC], list[dict[str, Any]]] = {}
        for name in self._specs.find_kernel_specs():
            try:
                stanza = process_proxy_config(self._specs.get_kernel_spec(name))
                back_ends.setdefault(import_item(stanza["class_name"]), []).append(stanza["config"])
            except Exception as error:  # noqa: BLE001 -- a kernelspec that cannot be used has no kernels
                log.debug("Kernelspec %s is excluded from the sweep: %s", name, error)
        return back_ends

    def _remove(self, report: SweepReport) -> None:
        for thing in _processes_first(report.found):
            try:
                thing.remove()
            except Exception as error:  # noqa: BLE001 -- of a third party's back end; the rest is removed
                report.failed[thing.what] = reason = _reason(error)
                log.warning("Leftover of kernel %s not removed: %s (%s)", thing.kernel_id, thing.what, reason)
            else:
                log.warning("Leftover of kernel %s removed: %s", thing.kernel_id, thing.what)


def _collect(find: Callable[[], Iterable[Remnant]], label: str, found: list[tuple[str, Remnant]]) -> None:
    """Add what is found to ``found``, also when asking fails in between."""
    for thing in find():
        found.append((label, thing))


def _reason(error: Exception) -> str:
    """Return the sentence of an error that is meant to be told; of another one its type, too."""
    return str(error) if isinstance(error, OSError | KernelLaunchError) else repr(error)


def _processes_first(things: Iterable[Remnant]) -> list[Remnant]:
    """Return files last: without its connection file a process that stays could not be used by hand any more."""
    return sorted(things, key=lambda thing: thing.what.startswith("file "))
