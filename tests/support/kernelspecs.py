"""Kernelspecs for tests, written where the gateway of the test looks for them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PYTHON_ARGV = (sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}")


def write_kernelspec(
    name: str,
    *,
    argv: Sequence[str] = PYTHON_ARGV,
    directory: Path | None = None,
    display_name: str | None = None,
    language: str = "python",
    files: dict[str, str | bytes] | None = None,
    **fields: Any,
) -> Path:
    """Write ``kernel.json`` (and ``files`` beside it) and return the kernelspec's directory.

    ``directory`` is one of Jupyter's data directories, by default the test's own ``JUPYTER_DATA_DIR``; ``fields`` go
    into ``kernel.json``: ``env``, ``metadata``, ``interrupt_mode`` …
    """
    root = directory or Path(os.environ["JUPYTER_DATA_DIR"])
    resource_dir = root / "kernels" / name
    resource_dir.mkdir(parents=True, exist_ok=True)
    spec = {"argv": list(argv), "display_name": display_name or name, "language": language, **fields}
    (resource_dir / "kernel.json").write_text(json.dumps(spec))
    for file, content in (files or {}).items():
        (resource_dir / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return resource_dir
