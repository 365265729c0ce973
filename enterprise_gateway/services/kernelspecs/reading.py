"""Reads ``kernel.json``, and reports what is wrong with one that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from traitlets import TraitError
from typing_extensions import Self

from ...core.errors import BrokenKernelSpecError


class UnreadableKernelSpecError(BrokenKernelSpecError, NoSuchKernel):
    """What :class:`CheckedKernelSpec` raises: jupyter_client silently omits such kernelspecs from its list."""

    __str__ = Exception.__str__


class CheckedKernelSpec(KernelSpec):
    """The ``kernel_spec_class`` of the gateway's kernelspec manager: null entries count as missing."""

    @classmethod
    def from_resource_dir(cls, resource_dir: str) -> Self:
        """Return the kernelspec of a directory; called by jupyter_client's manager. Blocks.

        Raises
        ------
        BrokenKernelSpecError
            Its ``kernel.json`` cannot be used; the message names the file and the reason.
        """
        file = Path(resource_dir, "kernel.json")
        try:
            # Unknown entries are left out, because traitlets will soon refuse them.
            known = {name: value for name, value in _checked(_parsed(file)).items() if name in cls.class_trait_names()}
            return cls(**{**known, "resource_dir": resource_dir})
        except (ValueError, TraitError) as error:
            raise UnreadableKernelSpecError(f"The kernelspec {file} cannot be used: {error}") from error


def _parsed(file: Path) -> dict[str, Any]:
    """Return the object in ``file``, which may begin with a byte order mark; ValueError tells why there is none."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8; save the file in that encoding.") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno} is not JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError("it must hold a JSON object.")
    return content


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are not null, if the gateway can use them; raise ValueError with the reason otherwise."""
    spec = _present(content)
    for name in ("env", "metadata"):
        _check_object(spec, name, name)
    metadata = spec["metadata"] = _present(spec.get("metadata", {}))
    for name in ("process_proxy", "kernel_provisioner"):
        _check_object(metadata, name, f"metadata.{name}")
        _check_object(metadata.get(name, {}), "config", f"metadata.{name}.config")
    argv = spec.get("argv", [])
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise ValueError("argv must be a list of strings.")
    if not argv and not metadata.get("kernel_provisioner"):
        raise ValueError("argv, the kernel's command, is missing or empty.")
    return spec


def _present(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None}


def _check_object(holder: dict[str, Any], name: str, called: str) -> None:
    if holder.get(name) is not None and not isinstance(holder[name], dict):
        raise ValueError(f"{called} must be a JSON object.")
