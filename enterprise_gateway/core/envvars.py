"""The environment variables that configure the gateway, in one table; the only reader of ``os.environ``.

Each is declared once, with its legacy alias, type, default and meaning, and read when it is used, never at import.
``docs`` are generated from :data:`TABLE`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

TABLE: dict[str, EnvVar] = {}  # type: ignore[type-arg]


@dataclass(frozen=True)
class EnvVar(Generic[T]):
    """One environment variable: call it to read its present value.

    ``names`` are tried in order: the first one set wins. ``parse`` turns text into the value and raises ValueError
    for text it cannot use.
    """

    names: tuple[str, ...]
    parse: Callable[[str], T]
    default: T
    help: str

    @property
    def name(self) -> str:
        """The name to use today; the others are legacy."""
        return self.names[0]

    def __call__(self, environ: Mapping[str, str] | None = None) -> T:
        """Return the parsed value, or the default when none of the names is set.

        Raises
        ------
        ValueError
            Names the variable and the text it cannot use.
        """
        environ = os.environ if environ is None else environ
        for name in self.names:
            if name in environ:
                try:
                    return self.parse(environ[name])
                except ValueError as error:
                    raise ValueError(f"{name}={environ[name]!r}: {error}") from error
        return self.default


def declare(name: str, parse: Callable[[str], T], default: T, help: str, *legacy: str) -> EnvVar[T]:
    """Add a variable to the table and return it."""
    variable = EnvVar((name, *legacy), parse, default, help)
    TABLE[name] = variable
    return variable


def process_environment() -> dict[str, str]:
    """Return a copy of the gateway's own environment."""
    return dict(os.environ)


def boolean(text: str) -> bool:
    """Parse the words that operators use for yes and no."""
    word = text.strip().lower()
    if word in {"1", "true", "t", "yes", "y", "on"}:
        return True
    if word in {"", "0", "false", "f", "no", "n", "off"}:
        return False
    raise ValueError("expected true or false")


def comma_list(text: str) -> tuple[str, ...]:
    """Split a comma list; blanks around entries and empty entries are dropped."""
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


EG_KERNEL_LAUNCH_TIMEOUT = declare(
    "EG_KERNEL_LAUNCH_TIMEOUT", float, 30.0, "Seconds to wait for a kernel's connection information."
)
EG_MIN_PORT_RANGE_SIZE = declare(
    "EG_MIN_PORT_RANGE_SIZE", int, 1000, "The smallest port range that is accepted; also told to launchers."
)
EG_MAX_PORT_RANGE_RETRIES = declare(
    "EG_MAX_PORT_RANGE_RETRIES", int, 5, "How often a port of a range is tried again; also told to launchers."
)
EG_POLL_INTERVAL = declare("EG_POLL_INTERVAL", float, 0.5, "Seconds between two polls, where polling is needed.")
EG_MAX_POLL_ATTEMPTS = declare("EG_MAX_POLL_ATTEMPTS", int, 10, "How many polls a wait consists of.")
EG_SENSITIVE_ENV_KEYS = declare(
    "EG_SENSITIVE_ENV_KEYS", comma_list, (), "Words; variables whose names contain one are masked in the debug log."
)
EG_REDACTION_MASK = declare("EG_REDACTION_MASK", str, "********", "What masked values are replaced by in the log.")
EG_REMOTE_USER = declare("EG_REMOTE_USER", str, "", "The user for SSH connections; default is the gateway's own.")
