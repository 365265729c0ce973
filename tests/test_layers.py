"""Every module of the package has its place in the layers that import-linter checks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[1]


def test_every_module_belongs_to_a_layer() -> None:
    """A module that no layer names could import whatever it likes."""
    package = REPOSITORY / "enterprise_gateway"
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {module for layer in layers for module in re.split(r"\s*[:|]\s*", layer)}
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.name not in {"__init__.py", "_version.py"}
    }
    homeless = {
        module for module in modules if not any(module == place or module.startswith(f"{place}.") for place in placed)
    }
    assert not homeless
    assert all(any(module == place or module.startswith(f"{place}.") for module in modules) for place in placed)
