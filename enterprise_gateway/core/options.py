"""Configurable options whose defaults come from the environment table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traitlets import Set, TraitType
from traitlets.config import Configurable

from .envvars import NOT_READ, EnvVar


class EnvironmentDefaults(Configurable):
    """Options whose default comes from an environment variable.

    A trait tagged ``env=<EnvVar>`` takes that variable's value, read when the trait is first used, as its default.
    The class gets ``<trait>_env`` (the variable's name) and ``<trait>_default_value`` (the built-in default), and
    the trait's help ends with the variable's names.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Equip the tagged traits of the new class; runs before traitlets looks for default generators."""
        super().__init_subclass__(**kwargs)
        for name, trait in list(vars(cls).items()):
            if isinstance(trait, TraitType) and "env" in trait.metadata:
                variable: EnvVar[Any] = trait.metadata["env"]
                names = " or, for compatibility, ".join(filter(None, [variable.name, ", ".join(variable.names[1:])]))
                text = trait.help if variable.is_read else f"{trait.help} {NOT_READ}"
                trait.help = trait.__doc__ = f"{text}\n\nEnvironment: {names}."
                setattr(cls, f"{name}_env", variable.name)
                setattr(cls, f"{name}_default_value", _container(trait, variable.default))
                setattr(cls, f"_{name}_default", _default_reader(trait, variable))


def _default_reader(trait: TraitType[Any, Any], variable: EnvVar[Any]) -> Callable[[Configurable], Any]:
    return lambda _: _container(trait, variable())


def _container(trait: TraitType[Any, Any], value: Any) -> Any:
    if isinstance(value, tuple):
        return set(value) if isinstance(trait, Set) else list(value)
    return value
