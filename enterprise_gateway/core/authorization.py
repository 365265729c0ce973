"""Who may start and see which kernels, and as which uid and gid."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import LaunchRefusedError

MAX_ID = 2**32 - 1


def name_set(value: object) -> frozenset[str]:
    """Return the names of a kernelspec entry: kernel.json holds comma strings or lists; empty names are dropped.

    Anything else is taken for a name: a number may be one, and what is no list must not become an empty one, which
    would permit everybody.
    """
    if value is None:
        return frozenset()
    entries = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else (value,)
    return frozenset(name for entry in entries if (name := str(entry).strip()))


@dataclass(frozen=True)
class UserRules:
    """The allow and deny lists in force for one kernelspec; names are case-sensitive."""

    authorized: frozenset[str]
    unauthorized: frozenset[str]

    @classmethod
    def for_spec(
        cls, config: Mapping[str, Any], authorized_users: Iterable[str], unauthorized_users: Iterable[str]
    ) -> UserRules:
        """Combine a kernelspec's process-proxy config with the gateway's lists.

        The kernelspec's ``authorized_users`` replace the gateway's; its ``unauthorized_users`` add to them. Null is the
        same as no entry.
        """
        authorized = config.get("authorized_users")
        return cls(
            name_set(authorized_users if authorized is None else authorized),
            name_set(unauthorized_users) | name_set(config.get("unauthorized_users")),
        )

    def permits(self, user: str) -> bool:
        """Whether ``user`` is not denied, and is named when anybody is."""
        return user not in self.unauthorized and (not self.authorized or user in self.authorized)

    def check_launch(self, user: str, display_name: str) -> None:
        """Refuse a launch by a user the rules do not permit.

        Raises
        ------
        LaunchRefusedError
            With the texts that upstream documents to users.
        """
        if user in self.unauthorized:
            raise LaunchRefusedError(
                f"User '{user}' is not authorized to start kernel '{display_name}'. "
                "Ensure KERNEL_USERNAME is set to an appropriate value and retry the request."
            )
        if self.authorized and user not in self.authorized:
            raise LaunchRefusedError(
                f"User '{user}' is not in the set of users authorized to start kernel '{display_name}'. "
                "Ensure KERNEL_USERNAME is set to an appropriate value and retry the request."
            )


def permitted_id(kind: str, value: str, prohibited: Collection[int]) -> str:
    """Return a uid or gid in canonical decimal form.

    Parameters
    ----------
    kind
        ``UID`` or ``GID``.
    value
        What the client or the default says; blanks, leading zeros and a plus sign are accepted.
    prohibited
        Numbers no kernel may run as (``EG_PROHIBITED_UIDS`` / ``EG_PROHIBITED_GIDS``).

    Raises
    ------
    LaunchRefusedError
        The value is no integer, out of range, or prohibited.
    """
    try:
        number = int(value)
    except ValueError as error:
        raise LaunchRefusedError(f"Kernel {kind} '{value[:32]}' is not a valid integer.") from error
    if not 0 <= number <= MAX_ID:
        raise LaunchRefusedError(f"Kernel {kind} '{value[:32]}' must be in range 0..{MAX_ID}.")
    if number in prohibited:
        raise LaunchRefusedError(f"Kernel {kind} {number} is prohibited by EG_PROHIBITED_{kind}S.")
    return str(number)
