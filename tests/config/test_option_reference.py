"""The generated option reference is what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from enterprise_gateway.core.envvars import NOT_READ, TABLE
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp

REPOSITORY = Path(__file__).parents[2]
GENERATOR = runpy.run_path(str(REPOSITORY / "docs" / "tools" / "generate_options.py"))


def test_the_committed_page_is_up_to_date():
    """docs/operators/config-options.md is what docs/tools/generate_options.py writes."""
    assert GENERATOR["PAGE"].read_text() == GENERATOR["page"](), "run: python docs/tools/generate_options.py"


def test_every_variable_is_on_the_page():
    """Each name of each variable, legacy ones too, stands in the reference."""
    page = GENERATOR["page"]()
    assert [name for variable in TABLE.values() for name in variable.names if f"`{name}`" not in page] == []


def test_variables_belong_to_options_that_exist():
    """What a variable claims to be the default of is an option of a class that a config file can name."""
    classes = {cls.__name__: cls for listed in EnterpriseGatewayApp.classes for cls in listed.mro()}
    for variable in TABLE.values():
        if variable.option:
            owner, _, option = variable.option.rpartition(".")
            cls = classes[owner] if owner else EnterpriseGatewayApp
            assert option in cls.class_traits(config=True), variable.name


def test_what_nothing_reads_is_not_offered_as_if_it_worked():
    """Variables and options of back ends that are not built say so, until the code uses them."""
    package = REPOSITORY / "enterprise_gateway"
    sources = [
        path for path in package.rglob("*.py") if path not in {package / "core/envvars.py", package / "config.py"}
    ]
    code = "\n".join(path.read_text() for path in sources)
    exempt = {"EG_RESTART_STATUS_POLL_INTERVAL", "EG_ALTERNATE_SIGINT"}  # their help says what they are
    for name in TABLE.keys() - exempt:
        use = rf"\benvvars\.{name}\(" if not TABLE[name].option else rf"\b{TABLE[name].option.rpartition('.')[2]}\b"
        assert TABLE[name].is_read == bool(re.search(use, code)), name


def test_the_page_marks_what_is_not_read():
    """One sentence stands with each such variable and option, and with no other."""
    page = " ".join(GENERATOR["page"]().split())
    assert page.count(NOT_READ) == sum(not variable.is_read for variable in TABLE.values())
    endpoint = EnterpriseGatewayApp.class_traits(config=True)["yarn_endpoint"]
    assert NOT_READ in endpoint.help
