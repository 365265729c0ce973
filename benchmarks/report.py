"""The rows of the table, and the files that hold the results."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
COLUMNS = {"ours": "this gateway", "eg": "EG 3.3.0", "js": "Jupyter Server 2", "zmq": "no gateway"}


@dataclass(frozen=True)
class Row:
    """One number of the table, where ``aim`` is our limit: a minimum if ``more`` is better, else a maximum."""

    key: str
    title: str
    unit: str
    aim: float | None = None
    more: bool = False
    digits: int = 2


ROWS = [
    Row("execute_p50", "execute round trip, one websocket, p50", "ms", 1.5),
    Row("execute_p99", "— p99", "ms"),
    Row("execute_p50_legacy", "execute round trip, legacy websocket protocol, p50", "ms", 1.5),
    Row("execute_p99_legacy", "— p99", "ms"),
    Row("many_rate", "50 kernels executing at once", "executes/s", 2000, True, 0),
    Row("many_cpu_ms", "— gateway CPU per execute", "ms", 0.35),
    Row("stream_rate", "20,000 stream messages through one websocket", "messages/s", 15000, True, 0),
    Row("stream_cpu_us", "— gateway CPU per message", "µs", 45, False, 1),
    Row("stream_rate_legacy", "— legacy protocol", "messages/s", None, True, 0),
    Row("stream_cpu_us_legacy", "— legacy protocol, gateway CPU per message", "µs", None, False, 1),
    Row("open_101", "open a websocket to a running kernel: until the 101, p50", "ms", 3),
    Row("open_reply", "— until the first reply through it, p50", "ms"),
    Row("api_starts_p50", "GET /api while 20 kernels start, p50", "ms"),
    Row("api_starts_p99", "— p99", "ms", 15),
    Row("starts_20", "— 20 starts at once, until the last is answered", "ms", None, False, 0),
    Row("starts_20_alone", "20 starts at once and no other request, until the last is answered", "ms", None, False, 0),
    Row("kernelspecs_rate", "GET /api/kernelspecs with 60 specs", "requests/s", 2000, True, 0),
    Row("hundred_uss_kb", "100 kernels with a websocket each: unshared memory per kernel", "kB", None, False, 0),
    Row("hundred_idle", "— idle CPU", "%", None, False, 1),
    Row("thousand_uss_kb", "1,000 kernels with a websocket each: unshared memory per kernel", "kB", 110, False, 0),
    Row("thousand_rss_kb", "— resident memory per kernel", "kB", 110, False, 0),
    Row("thousand_idle", "— idle CPU", "%", 5, False, 1),
    Row("thousand_start_s", "— time to start them and execute once in each", "s", None, False, 1),
    Row("startup", "process start to the first answer of /api", "s", 2),
    Row("import_own", "import of our modules beyond jupyter_server's kernel manager", "s", 0.2),
    Row("remote_start", "remote start beyond what the launcher takes, p50", "ms", 30, False, 1),
    Row("launcher", "— the stub launcher by itself", "ms", None, False, 1),
    Row("remote_burst_answered", "30 remote starts at once, until all are answered", "s"),
    Row("remote_burst_usable", "— until all have executed a cell", "s", 0.35),
    Row("remote_api_without", "GET /api with no remote kernel, p50", "ms"),
    Row("remote_api_with", "— with 50 remote kernels, p50", "ms"),
    Row("remote_api_with_p99", "— with 50 remote kernels, p99", "ms"),
    Row("remote_thousand_idle", "1,000 remote kernels with a websocket each: idle CPU", "%", 5, False, 1),
    Row("remote_thousand_uss_kb", "— unshared memory per kernel", "kB", None, False, 0),
    Row("remote_thousand_start_s", "— time to start them and execute once in each", "s", None, False, 1),
]


def machine() -> dict[str, Any]:
    """Describe the machine on which the numbers were measured."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory), "system": platform.platform()}


def load(fresh: bool) -> dict[str, Any]:
    """Return the stored results; empty ones if there are none or ``fresh`` ones are requested."""
    if RESULTS.exists() and not fresh:
        return dict(json.loads(RESULTS.read_text()))
    return {"machine": {}, "versions": {}, "numbers": {}, "failures": {}}


def median(results: dict[str, Any], target: str, key: str) -> float | None:
    """Return the median of a target's repeated measurements of a number."""
    values = results["numbers"].get(target, {}).get(key)
    return statistics.median(values) if values else None


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table of medians, ratios and aims, with the failures."""
    columns = [name for name in COLUMNS if results["numbers"].get(name) or name in results["failures"]]
    head = ["", "unit", *(COLUMNS[name] for name in columns), "EG 3.3.0 ÷ ours", "aim"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---|" + "---:|" * (len(head) - 2)]
    for row in ROWS:
        values = {name: median(results, name, row.key) for name in columns}
        failed = {name for name in columns if row.key in results["failures"].get(name, {})}
        if all(value is None for value in values.values()) and not failed:
            continue
        cells = ["failed" if name in failed else number(values[name], row.digits) for name in columns]
        lines.append(f"| {row.title} | {row.unit} | {' | '.join(cells)} | {ratio(row, values)} | {aim(row, values)} |")
    lines += ["", *failures(results)]
    return "\n".join(lines).rstrip() + "\n"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(row: Row, values: dict[str, float | None]) -> str:
    ours, peer = values.get("ours"), values.get("eg")
    if not ours or not peer or ours <= 0 or peer <= 0:
        return ""
    factor = ours / peer if row.more else peer / ours
    return f"{factor:.1f} x"


def aim(row: Row, values: dict[str, float | None]) -> str:
    if row.aim is None:
        return ""
    ours = values.get("ours")
    text = f"{'≥' if row.more else '≤'} {row.aim:,g}"
    if ours is None:
        return text
    kept = ours >= row.aim if row.more else ours <= row.aim
    return f"{text} {'✓' if kept else '✗'}"


def failures(results: dict[str, Any]) -> list[str]:
    titles = {row.key: row.title.lstrip("— ") for row in ROWS}
    by_text: dict[tuple[str, str], list[str]] = {}
    for target, failed in results["failures"].items():
        for key, title in titles.items():
            if key in failed:
                by_text.setdefault((target, failed[key]), []).append(title)
    return [f"* {COLUMNS[target]} failed ({rows[0]}): {text}" for (target, text), rows in by_text.items()]


def heading(results: dict[str, Any]) -> str:
    """Return one paragraph on the machine, the versions and the date."""
    host = results["machine"]
    memory = f"{host['memory_gib']} GiB"
    lines = [f"Machine: {host['cores']} cores of {host['cpu']}, {memory}, {host['system']}."]
    lines += [f"Last run: {results['date']}, load average before it {results['load']}.", ""]
    for target, versions in results["versions"].items():
        lines.append(f"* {COLUMNS[target]}: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return "\n".join(lines) + "\n"


def store(results: dict[str, Any]) -> None:
    """Write the results and put the table into the README."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{heading(results)}\n{table(results)}{END}{after}")
