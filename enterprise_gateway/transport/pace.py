"""How many messages per second a client may send: more are delayed, and none is lost."""

from __future__ import annotations

_MAX_KNOWN = 10_000


class Pace:
    """Lets each name send ``rate`` messages at once and then ``rate`` a second; 0 lets all send any number."""

    __slots__ = ("_due", "rate")

    def __init__(self, rate: int = 0) -> None:
        self.rate = rate
        self._due: dict[str, float] = {}  # when each name's last message was due

    def delay(self, name: str, now: float) -> float:
        """Count a message that has come at ``now``, and return how many seconds it has to wait."""
        if not self.rate:
            return 0.0
        due = max(self._due.get(name, 0.0), now - 1.0) + 1.0 / self.rate
        self._due[name] = due
        if len(self._due) > _MAX_KNOWN:  # who has been silent for a second is as good as unknown
            self._due = {name: due for name, due in self._due.items() if due > now - 1.0}
        return max(0.0, due - now)
