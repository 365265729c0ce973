"""Options that change while the gateway runs."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from traitlets.config import Configurable

from tests.support.embedded import make_app, serving
from tests.support.processes import gateway_process


@pytest.fixture
def config_file(clean_environment):
    """The file that the tests write; it does not exist yet."""
    return clean_environment / "config" / "jupyter_enterprise_gateway_config.py"


async def eventually(condition, timeout=5.0):
    """Wait until ``condition`` holds."""
    end = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.02)


def test_nothing_changed_is_nothing_updated(config_file):
    """Without a change of files there is nothing to do."""
    config_file.write_text("c.EnterpriseGatewayApp.max_kernels = 1\n")
    app = make_app()
    app.load_config_file()
    assert app.max_kernels == 1
    assert app.update_dynamic_configurables() is False


def test_a_file_that_appears_later_is_read(config_file):
    """A file created after the start is noticed; upstream only looked at files that had been loaded."""
    app = make_app()
    assert app.update_dynamic_configurables() is False
    config_file.write_text("c.EnterpriseGatewayApp.max_kernels = 2\n")
    assert app.update_dynamic_configurables() is True
    assert app.max_kernels == 2
    assert app.update_dynamic_configurables() is False


def test_values_reach_settings_and_managers(config_file):
    """Changed values apply to tornado's settings, the kernel manager, kernelspecs and the session store."""
    app = make_app()
    config_file.write_text(
        "c.EnterpriseGatewayApp.auth_token = 'new'\n"
        "c.EnterpriseGatewayApp.list_kernels = True\n"
        "c.EnterpriseGatewayConfigMixin.authorized_users = {'bob'}\n"
        "c.MappingKernelManager.cull_idle_timeout = 77\n"
        "c.KernelSpecManager.allowed_kernelspecs = {'a'}\n"
        "c.FileKernelSessionManager.store_timeout = 3.5\n"
    )
    assert app.update_dynamic_configurables() is True
    settings = app.web_app.settings
    assert (settings["eg_auth_token"], settings["eg_list_kernels"]) == ("new", True)
    assert settings["eg_authorized_users"] == {"bob"}
    assert app.kernel_manager.cull_idle_timeout == 77
    assert app.kernel_spec_manager.allowed_kernelspecs == {"a"}
    assert app.kernel_session_manager.store_timeout == 3.5


def test_the_command_line_keeps_priority(config_file):
    """An option given on the command line is not changed by a file."""

    def parse(app):
        app.parse_command_line(["--EnterpriseGatewayApp.max_kernels=5"])

    app = make_app(parse)
    config_file.write_text("c.EnterpriseGatewayApp.max_kernels = 9\nc.EnterpriseGatewayApp.max_age = '1'\n")
    assert app.update_dynamic_configurables() is True
    assert (app.max_kernels, app.max_age) == (5, "1")


def test_a_broken_file_changes_nothing(config_file, expect_log):
    """A file with an error is logged, and read again when it is repaired."""
    app = make_app()
    config_file.write_text("c.EnterpriseGatewayApp.max_kernels = (\n")
    with expect_log("Exception while loading config file"):
        app.update_dynamic_configurables()
    assert app.max_kernels is None
    config_file.write_text("c.EnterpriseGatewayApp.max_kernels = 4  # repaired\n")
    assert app.update_dynamic_configurables() is True
    assert app.max_kernels == 4


def test_an_unusable_value_does_not_stop_the_others(config_file, expect_log):
    """A value of the wrong type is logged; what is meant for other objects applies."""
    app = make_app()
    config_file.write_text("c.EnterpriseGatewayApp.port = 'x'\nc.MappingKernelManager.cull_idle_timeout = 5\n")
    with expect_log("a value that EnterpriseGatewayApp cannot take"):
        assert app.update_dynamic_configurables() is True
    assert app.kernel_manager.cull_idle_timeout == 5


def test_other_objects_can_follow(config_file):
    """Extensions register their own configurables; what has no options is refused."""
    from traitlets import Integer

    class Extension(Configurable):
        size = Integer(1, config=True)

    app, extension = make_app(), Extension()
    app.add_dynamic_configurable("Extension", extension)
    with pytest.raises(RuntimeError, match="'Thing' is not a Configurable"):
        app.add_dynamic_configurable("Thing", object())
    config_file.write_text("c.Extension.size = 3\n")
    assert app.update_dynamic_configurables() is True
    assert extension.size == 3


def test_two_applications_do_not_meet(config_file):
    """The registry belongs to the application: another one, alive or gone, changes nothing."""
    make_app()
    app = make_app()
    config_file.write_text("c.EnterpriseGatewayApp.max_kernels = 6\n")
    assert app.update_dynamic_configurables() is True
    assert app.max_kernels == 6


async def test_the_interval_can_change_while_it_runs(config_file, caplog):
    """Setting an interval begins to look, another re-arms, 0 ends it."""
    from tests.support.loops import loop_may_be_held

    with loop_may_be_held("the application is built"):
        app = make_app()
    async with serving(app) as request:
        assert (await request("/api/kernels")).code == 403
        app.dynamic_config_interval = 3600
        app.dynamic_config_interval = 1
        config_file.write_text("c.EnterpriseGatewayApp.list_kernels = True\n")

        async def is_listed():
            return (await request("/api/kernels")).code == 200

        await eventually(is_listed)
        app.dynamic_config_interval = 0
        config_file.write_text("c.EnterpriseGatewayApp.list_kernels = False\n")
        await asyncio.sleep(1.2)
        assert await is_listed()


async def test_a_running_program_takes_a_new_token(tmp_path, config_file):
    """The program reads a file that appears, and asks for the token in it from the next request on."""
    from tests.support.embedded import Requests

    async with gateway_process(tmp_path / "log", env={"EG_DYNAMIC_CONFIG_INTERVAL": "1"}) as gateway:
        request = Requests(gateway.url)
        assert (await request("/api")).code == 200
        (config_file.with_suffix(".json")).write_text(json.dumps({"EnterpriseGatewayApp": {"auth_token": "s3"}}))

        async def is_refused():
            return (await request("/api")).code == 401

        await eventually(is_refused)
        assert (await request("/api", headers={"Authorization": "token s3"})).code == 200
        assert "Config files changed; updated: EnterpriseGatewayApp" in gateway.output
        assert "s3" not in gateway.output
