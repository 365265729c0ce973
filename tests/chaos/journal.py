"""What happened when, and what was wrong: enough to find the cause without another run."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path

BEFORE_SECONDS, AFTER_SECONDS = 20.0, 5.0
_STAMP = re.compile(r"^\[\w (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[.,](\d+)")
_ROUTINE = re.compile(r"tornado\.access\]|base\.mixins\] (4|503)|\w{8}-\w{4}-\w{4}-\w{4}-\w{12}")
_MOST_LINES = 60


class Journal:
    """The time line of one run."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed, self.directory = seed, directory
        self._began = time.time()
        self._entries: list[tuple[float, str]] = []
        self._violations: dict[str, tuple[float, str]] = {}

    @property
    def has_violations(self) -> bool:
        """Whether anything was wrong."""
        return bool(self._violations)

    def note(self, text: str) -> None:
        """Enter what happens now."""
        self._entries.append((time.time(), text))
        with (self.directory / "journal.txt").open("a") as file:
            file.write(f"{self._time(time.time())} {text}\n")

    def violation(self, text: str, kernel_id: str = "", *, kind: str = "") -> None:
        """Enter what must not be; of the same ``kind``, and about the same kernel, once."""
        key = f"{kind or text} {kernel_id}"
        if key not in self._violations:
            self._violations[key] = (time.time(), f"{f'kernel {kernel_id}: ' if kernel_id else ''}{text}")
            self.note(f"VIOLATION {self._violations[key][1]}")

    def report(self) -> str:
        """Return all violations, each with the time line and what the replicas logged around it."""
        parts = [f"seed {self.seed}: {len(self._violations)} violations; the logs are in {self.directory}"]
        for key, (at, text) in self._violations.items():
            kernel_id = key.rpartition(" ")[2]
            first, last = at - BEFORE_SECONDS, at + AFTER_SECONDS
            parts += [f"\n=== {self._time(at)} {text}", "--- what was done"]
            parts += [f"{self._time(when)} {entry}" for when, entry in self._entries if first <= when <= last]
            parts += ["--- what the replicas logged of it", *self._logged(first, last, kernel_id)]
        return "\n".join(parts)

    def _time(self, at: float) -> str:
        return f"{at - self._began:7.2f} s"

    def _logged(self, first: float, last: float, kernel_id: str) -> list[str]:
        """Return what the replicas said in a period, in order: all of one kernel, and what matters to all."""
        found = []
        for log in self.directory.glob("gateway*.log"):
            at = 0.0
            for line in log.read_text(errors="replace").splitlines():
                if stamp := _STAMP.match(line):
                    at = datetime.fromisoformat(stamp[1]).timestamp() + float(f"0.{stamp[2]}")
                if first <= at <= last and ((kernel_id and kernel_id in line) or not _ROUTINE.search(line)):
                    found.append((at, f"{self._time(at)} {log.stem}: {line[:300]}"))
        found.sort(key=lambda entry: entry[0])
        left_out = [f"… {len(found) - _MOST_LINES} lines before"] if len(found) > _MOST_LINES else []
        return left_out + [line for _, line in found[-_MOST_LINES:]]
