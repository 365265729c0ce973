"""``jupyter enterprisegateway-kernelspecs``: lists and installs the kernelspecs that come with the gateway."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = "The kernelspecs for remote kernels that come with the gateway."


class InstallError(Exception):
    """A kernelspec cannot be installed; the message says why."""


def shipped_kernelspecs() -> dict[str, Path]:
    """Return the directories of the kernelspecs that come with the gateway, by the names that clients see."""
    package = Path(__file__).parents[2]
    # In a wheel they are part of the package; in a source tree they are next to it.
    for root in (package / "etc" / "kernelspecs", package.parent / "etc" / "kernelspecs"):
        if root.is_dir():
            return {path.parent.name.lower(): path.parent for path in sorted(root.glob("*/kernel.json"))}
    return {}


def install(source: Path, destination: Path, *, replace: bool, changes: dict[str, Any]) -> None:
    """Copy a kernelspec with its launcher, completely or not at all.

    Parameters
    ----------
    source
        A directory of :func:`shipped_kernelspecs`.
    destination
        The directory to create.
    replace
        Whether to replace an existing one.
    changes
        ``python``: the interpreter on the kernels' hosts; ``remote_hosts``: their names; ``env``: more variables;
        ``display_name``. None and empty values change nothing.

    Raises
    ------
    InstallError
        It already exists, or cannot be written.
    """
    if destination.exists() and not replace:
        raise InstallError(f"{destination} already exists; use --replace to replace it.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".installing-", dir=destination.parent) as work:
            new = Path(work) / "new"
            # Links are followed, because several kernelspecs share a launcher in the source tree.
            shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            spec = json.loads((new / "kernel.json").read_text())
            (new / "kernel.json").write_text(json.dumps(changed(spec, changes), indent=2) + "\n")
            if destination.exists():
                destination.rename(Path(work) / "old")
            new.rename(destination)
    except OSError as error:
        raise InstallError(f"{destination} cannot be written: {error}") from error


def changed(spec: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a ``kernel.json`` with changes as :func:`install` takes them."""
    spec = dict(spec)
    python = changes.get("python")
    if python:
        spec["argv"] = [python if word == "python" else word for word in spec["argv"]]
        if "PYSPARK_PYTHON" in spec.get("env", {}):
            spec["env"] = {**spec["env"], "PYSPARK_PYTHON": python}
    if changes.get("display_name"):
        spec["display_name"] = changes["display_name"]
    if changes.get("env"):
        spec["env"] = {**spec.get("env", {}), **changes["env"]}
    if changes.get("remote_hosts"):
        stanza = spec["metadata"]["process_proxy"]
        config = {**stanza.get("config", {}), "remote_hosts": changes["remote_hosts"]}
        spec["metadata"] = {**spec["metadata"], "process_proxy": {**stanza, "config": config}}
    return spec


def kernels_directory(options: argparse.Namespace) -> Path:
    """Return the directory for kernelspecs that the options choose; Jupyter's system-wide one by default."""
    from jupyter_core.paths import SYSTEM_JUPYTER_PATH, jupyter_data_dir

    if options.user:
        return Path(jupyter_data_dir()) / "kernels"
    if options.sys_prefix:
        return Path(sys.prefix) / "share" / "jupyter" / "kernels"
    if options.prefix:
        return Path(options.prefix) / "share" / "jupyter" / "kernels"
    return Path(SYSTEM_JUPYTER_PATH[0]) / "kernels"


def variable(text: str) -> tuple[str, str]:
    """Parse an argument ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="jupyter enterprisegateway-kernelspecs", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the kernelspecs that can be installed")
    add = commands.add_parser("install", help="install kernelspecs")
    add.add_argument("names", nargs="+", metavar="NAME", help="names as shown by `list`")
    where = add.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="install for the current user only")
    where.add_argument("--sys-prefix", action="store_true", help="install into the environment of this Python")
    where.add_argument("--prefix", metavar="DIR", help="install into DIR/share/jupyter/kernels")
    add.add_argument("--replace", action="store_true", help="replace kernelspecs that are already installed")
    add.add_argument("--python", metavar="PATH", help="path of Python on the hosts where kernels run")
    add.add_argument("--remote-hosts", metavar="HOSTS", help="comma-separated list of the hosts where kernels run")
    add.add_argument(
        "--env", action="append", type=variable, default=[], metavar="NAME=VALUE", help="a variable for the kernels"
    )
    add.add_argument("--display-name", metavar="TEXT", help="display name for users; for a single kernelspec")
    add.add_argument("--name", metavar="NAME", help="install under another name; for a single kernelspec")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    specs = shipped_kernelspecs()
    if options.command == "list":
        for name, path in specs.items():
            sys.stdout.write(f"{name:<28} {json.loads((path / 'kernel.json').read_text())['display_name']}\n")
        return 0
    unknown = [name for name in options.names if name.lower() not in specs]
    if unknown:
        parser.error(f"there is no kernelspec {', '.join(unknown)}; there are {', '.join(specs)}")
    if len(options.names) > 1 and (options.name or options.display_name):
        parser.error("--name and --display-name are for a single kernelspec")
    changes = {
        "python": options.python,
        "remote_hosts": options.remote_hosts,
        "env": dict(options.env),
        "display_name": options.display_name,
    }
    for name in options.names:
        destination = kernels_directory(options) / (options.name or name).lower()
        try:
            install(specs[name.lower()], destination, replace=options.replace, changes=changes)
        except InstallError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stdout.write(f"Installed {name} in {destination}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
