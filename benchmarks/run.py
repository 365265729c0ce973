"""Measure this gateway and its peers: ``python benchmarks/run.py``, or ``make bench``. See README.md."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baseline
import report
import scenarios
from client import RequestError
from scenarios import FULL, QUICK, Effort, Numbers
from targets import CHECKOUT, Farms, Gateway, Target, make_targets

Scenario = Callable[[Gateway, Effort], Numbers]


@dataclass(frozen=True)
class Measure:
    """A scenario, its repetitions, the targets it runs on, and the prefix of its numbers' names."""

    run: Scenario
    rounds: int
    targets: tuple[str, ...]
    prefixes: tuple[str, ...]
    direct: Callable[[Farms, Effort], Numbers] | None = None

    def keys(self) -> list[str]:
        """Name the rows of the table that this measure fills."""
        return [row.key for row in report.ROWS if row.key.startswith(self.prefixes)]


ALL, GATEWAYS = ("ours", "eg", "js"), ("ours", "eg")
MEASURES = {
    "round_trip": Measure(scenarios.round_trip, 3, ALL, ("execute_",), direct=baseline.round_trip),
    "many": Measure(scenarios.many_kernels, 3, ALL, ("many_",), direct=baseline.many_kernels),
    "stream": Measure(scenarios.stream, 3, ALL, ("stream_",), direct=baseline.stream),
    "open": Measure(scenarios.open_websocket, 3, ALL, ("open_",)),
    "api": Measure(scenarios.api_during_starts, 3, ALL, ("api_starts", "starts_20")),
    "specs": Measure(scenarios.kernelspecs, 3, ALL, ("kernelspecs_",)),
    "remote_start": Measure(scenarios.remote_start, 3, GATEWAYS, ("remote_start", "launcher")),
    "remote_burst": Measure(scenarios.remote_burst, 3, GATEWAYS, ("remote_burst",)),
    "remote_api": Measure(scenarios.remote_api, 2, GATEWAYS, ("remote_api",)),
    "hundred": Measure(scenarios.hundred, 1, ALL, ("hundred_",)),
    "thousand": Measure(scenarios.thousand, 1, ALL, ("thousand_",)),
    "thousand_remote": Measure(scenarios.thousand_remote, 1, GATEWAYS, ("remote_thousand",)),
}
IMPORTS = "imports"
IMPORT_ROUNDS = 5
IMPORT_PROBE = """
import time, sys
import jupyter_server.services.kernels.kernelmanager
began = time.perf_counter()
import {module}
print(time.perf_counter() - began)
"""


def main() -> int:
    options = parse()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = options.target.split(",")
    effort = QUICK if options.quick else FULL
    targets = make_targets(
        [name for name in names if name != "zmq"], options.python, options.eg_python, options.checkout.resolve()
    )
    results = report.load(fresh=options.quick)
    results.update(
        machine=report.machine(),
        load=" ".join(f"{value:.1f}" for value in os.getloadavg()),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    results["versions"].update({name: target.versions() for name, target in targets.items()})
    with tempfile.TemporaryDirectory(prefix="eg-bench-") as text:
        directory = Path(text)
        farms = Farms(directory)
        try:
            Session(options, effort, targets, farms, results).run()
        finally:
            farms.close()
            if options.keep_logs:
                shutil.copytree(directory, options.keep_logs, dirs_exist_ok=True, ignore=only_logs)
    print(report.heading(results))
    print(report.table(results))
    if not options.quick and not options.no_write:
        report.store(results)
    return 1 if results["failures"].get("ours") else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"comma-separated list of {', '.join([*MEASURES, IMPORTS])}")
    parser.add_argument("--target", default="ours,eg,js,zmq", help="some of ours,eg,js,zmq (default: all)")
    parser.add_argument("--rounds", type=int, help="number of repetitions of each measurement")
    parser.add_argument("--quick", action="store_true", help="short and imprecise; writes no files")
    parser.add_argument("--no-write", action="store_true", help="do not change results.json and README.md")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="interpreter for this checkout and jupyter_server"
    )
    parser.add_argument("--eg-python", type=Path, help="has jupyter_enterprise_gateway 3.3.0 (default: install it)")
    parser.add_argument(
        "--checkout", type=Path, default=CHECKOUT, help="checkout to measure as ours (default: this one)"
    )
    parser.add_argument("--keep-logs", type=Path, metavar="DIRECTORY", help="copy the gateways' logs here")
    return parser.parse_args()


def only_logs(_: str, names: list[str]) -> set[str]:
    return {name for name in names if not name.endswith(".log")}


class Session:
    """One run of the suite: rounds go through the targets in turn (A B C, A B C), each on a fresh gateway."""

    def __init__(
        self, options: argparse.Namespace, effort: Effort, targets: dict[str, Target], farms: Farms, results: Any
    ) -> None:
        self._options = options
        self._effort = effort
        self._targets = targets
        self._farms = farms
        self._results = results
        self._startups: dict[str, list[float]] = {}
        self._direct = "zmq" in options.target.split(",")
        self._fresh: set[tuple[str, str]] = set()
        self._failed: set[tuple[str, str]] = set()

    def run(self) -> None:
        """Run all requested measurements."""
        chosen = self._options.only.split(",") if self._options.only else [*MEASURES, IMPORTS]
        for name in chosen:
            if name == IMPORTS:
                self._import_cost()
                continue
            measure = MEASURES[name]
            rounds = self._options.rounds or (1 if self._options.quick else measure.rounds)
            for _ in range(rounds):
                for target in self._targets.values():
                    if target.name in measure.targets:
                        self._one(name, target)
                if measure.direct is not None and self._direct:
                    self._record("zmq", name, measure.direct(self._farms, self._effort))
        for started, values in self._startups.items():
            if len(values) >= 3:
                self._results["numbers"].setdefault(started, {})["startup"] = [round(value, 4) for value in values]

    def _one(self, name: str, target: Target) -> None:
        measure = MEASURES[name]
        began = time.monotonic()
        gateway = None
        try:
            gateway = Gateway(target, self._farms.directory, self._farms)
            self._startups.setdefault(target.name, []).append(gateway.startup)
            numbers = measure.run(gateway, self._effort)
        except (RequestError, OSError, ValueError, KeyError) as error:
            text = f"{error}" if str(error) else type(error).__name__
            keys = measure.keys()
            self._results["failures"].setdefault(target.name, {}).update(dict.fromkeys(keys, text))
            for key in keys:
                self._results["numbers"].get(target.name, {}).pop(key, None)
            self._failed.add((target.name, name))
            print(f"{name} {target.name}: FAILED: {text}", file=sys.stderr, flush=True)
            return
        finally:
            if gateway is not None:
                gateway.kill()
        self._record(target.name, name, numbers)
        text = " ".join(f"{key}={value:.3f}" for key, value in numbers.items())
        print(f"{name} {target.name} ({time.monotonic() - began:.1f} s): {text}", file=sys.stderr, flush=True)

    def _record(self, target: str, name: str, numbers: Numbers) -> None:
        stored = self._results["numbers"].setdefault(target, {})
        if (target, name) in self._failed:
            return
        for key in MEASURES[name].keys() if name in MEASURES else ("import_own",):
            self._results["failures"].get(target, {}).pop(key, None)
        for key, value in numbers.items():
            if (target, key) not in self._fresh:
                self._fresh.add((target, key))
                stored[key] = []
            stored[key].append(round(value, 4))

    def _import_cost(self) -> None:
        """Import the gateways' main modules after jupyter_server's kernel manager, in fresh interpreters."""
        for _ in range(self._options.rounds or IMPORT_ROUNDS):
            for target in self._targets.values():
                if target.name not in GATEWAYS:
                    continue
                path = {"PYTHONPATH": str(target.checkout)} if target.checkout else {}
                done = subprocess.run(
                    [target.python, "-c", IMPORT_PROBE.format(module=target.main_module)],
                    env={"PATH": os.environ["PATH"], "HOME": str(self._farms.directory), **path},
                    cwd=self._farms.directory,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                if done.returncode:
                    text = done.stderr.strip().splitlines()[-1]
                    self._results["failures"].setdefault(target.name, {})["import_own"] = text
                    print(f"imports {target.name}: FAILED: {text}", file=sys.stderr, flush=True)
                    continue
                self._record(target.name, IMPORTS, {"import_own": float(done.stdout)})
        medians = {
            name: statistics.median(values["import_own"])
            for name, values in self._results["numbers"].items()
            if "import_own" in values
        }
        print(f"imports: {medians}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
