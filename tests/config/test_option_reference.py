"""The generated option reference is what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

from enterprise_gateway.core.envvars import TABLE
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tools" / "generate_options.py"))


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
