"""Write docs/operators/config-options.md from the code; ``--check`` only says whether it is up to date.

Run from the repository: ``python docs/tools/generate_options.py``.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traitlets import TraitType
from traitlets.config import Configurable

from enterprise_gateway.config import EnterpriseGatewayConfigMixin
from enterprise_gateway.core import envvars
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp

PAGE = Path(__file__).parents[1] / "operators" / "config-options.md"
HEADER = """\
# All options

<!-- Written by docs/tools/generate_options.py from the code: change the help texts there, not this page. -->

This page lists every option and every environment variable.
[Configuration files](config-file.md) and [the command line](config-cli.md) say how to set them.
A value is taken from the command line, else from a config file, else from the environment, else it is the default.

In config files, write `c.<Class>.<option> = <value>`; on the command line, `--<Class>.<option>=<value>`.
List values are comma-separated in the environment (`EG_REMOTE_HOSTS=a,b`) and Python lists elsewhere.
"""


def page() -> str:
    """Return the text of the page."""
    EnterpriseGatewayConfigMixin()  # an instance resolves the classes that defaults name: they read alike ever after
    return "\n".join([HEADER, *gateway_options(), *class_options(), *variables()]).rstrip() + "\n"


def gateway_options() -> Iterator[str]:
    """Yield the application's options under the headings that the source has."""
    yield "## The gateway: `EnterpriseGatewayApp`\n"
    traits = EnterpriseGatewayConfigMixin.class_traits(config=True)
    for line in inspect.getsource(EnterpriseGatewayConfigMixin).splitlines():
        if heading := re.match(r"    # -- (.+)", line):
            yield f"### {heading[1]}\n"
        elif (option := re.match(r"    (\w+) = \w+\(", line)) and option[1] in traits:
            yield from entry(option[1], traits[option[1]], level=4)


def class_options() -> Iterator[str]:
    """Yield the options of all other classes that a config file may name."""
    documented = {EnterpriseGatewayConfigMixin, EnterpriseGatewayApp}
    for listed in EnterpriseGatewayApp.classes:
        own: dict[str, TraitType[Any, Any]] = {}
        for cls in reversed(listed.mro()):
            if cls in documented or not issubclass(cls, Configurable) or not cls.__module__.startswith("enterprise_"):
                continue
            documented.add(cls)
            own |= {name: trait for name, trait in cls.class_own_traits(config=True).items() if trait.help}
            # Bases that are no managers only group options of the class below.
            if own and (cls is listed or cls.__name__.endswith("Manager")):
                yield f"## `{cls.__name__}`\n"
                yield f"{first_paragraph(cls)}\n"
                for name, trait in own.items():
                    yield from entry(name, trait, level=3, owner=cls.__name__)
                own = {}


def variables() -> Iterator[str]:
    """Yield the environment variables that belong to no option."""
    yield "## Environment variables without an option\n"
    group = ""
    for variable in envvars.TABLE.values():
        if variable.option:
            continue
        if variable.group != group:
            group = variable.group
            yield f"### {group}\n"
        yield f"#### `{variable.name}`\n"
        legacy = "".join(f" Also read as `{name}`." for name in variable.names[1:])
        yield f"Default: {shown(variable.default)}.{legacy}\n"
        yield f"{sentence_lines(variable.help)}\n"


def entry(name: str, trait: TraitType[Any, Any], level: int, owner: str = "") -> Iterator[str]:
    """Yield heading, type, default, variables and help of one option."""
    yield f"{'#' * level} `{name}`\n"
    facts = [f"Type: {type(trait).__name__}.", f"Default: `{trait.default_value_repr()}`."]
    qualified = f"{owner}.{name}" if owner else name
    variable = next((each for each in envvars.TABLE.values() if each.option == qualified), None)
    if variable is not None:
        facts.append("Environment: " + ", ".join(f"`{each}`" for each in variable.names) + ".")
    yield " ".join(facts) + "\n"
    text = re.sub(r"\s*(Environment: |\(EG_\w+ env var\)).*", "", trait.help, flags=re.DOTALL)
    yield f"{sentence_lines(text)}\n"


def first_paragraph(cls: type) -> str:
    """Return the first paragraph of a class's documentation."""
    return sentence_lines(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0])


def shown(value: Any) -> str:
    """Return a variable's default as a reader writes it."""
    if value is None or value == "":
        return "not set"
    return "`" + (",".join(map(str, value)) if isinstance(value, tuple) else str(value)) + "`"


def sentence_lines(text: str) -> str:
    """Return the text with one sentence a line, so that changes of it are easy to review."""
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))
    text = re.sub(r"(?<![\w`<*])([A-Z][\w-]*_\*|LD_\*|PYTHON\*)", r"`\1`", text)
    return re.sub(r"(?<=[.:;]) (?=[A-Z`])", "\n", text)


def main(argv: list[str]) -> int:
    """Write the page, or compare it; return the exit code."""
    if "--check" not in argv:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page())
        return 0
    if not PAGE.exists() or PAGE.read_text() != page():
        print(f"{PAGE} is not what the code says; run: python docs/tools/generate_options.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
