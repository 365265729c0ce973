"""The options: where their values come from, and what is refused."""

from __future__ import annotations

import pytest
from traitlets import TraitError
from traitlets.config import Config

from enterprise_gateway.config import EnterpriseGatewayConfigMixin
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from tests.support.embedded import make_app

OPTIONS = dict(EnterpriseGatewayConfigMixin.class_traits(config=True))
WITH_VARIABLE = {name: trait.metadata["env"] for name, trait in OPTIONS.items() if "env" in trait.metadata}

UPSTREAM_DEFAULTS = {
    "port": 8888,
    "port_retries": 50,
    "ip": "127.0.0.1",
    "base_url": "/",
    "auth_token": "",
    "allow_credentials": "",
    "allow_headers": "",
    "allow_methods": "",
    "allow_origin": "",
    "expose_headers": "",
    "max_age": "",
    "trust_xheaders": False,
    "certfile": None,
    "keyfile": None,
    "client_ca": None,
    "ssl_version": None,
    "max_kernels": None,
    "max_kernels_per_user": -1,
    "default_kernel_name": "",
    "list_kernels": False,
    "client_envs": [],
    "inherited_envs": [],
    "kernel_headers": [],
    "remote_hosts": ["localhost"],
    "load_balancing_algorithm": "round-robin",
    "yarn_endpoint": None,
    "alt_yarn_endpoint": None,
    "yarn_endpoint_security_enabled": False,
    "conductor_endpoint": None,
    "impersonation_enabled": False,
    "unauthorized_users": {"root"},
    "authorized_users": set(),
    "authorized_origin": "",
    "port_range": "0..0",
    "ws_ping_interval": 30,
    "dynamic_config_interval": 0,
    "availability_mode": None,
}

KERNEL_GATEWAY_NAMES = {
    "allow_credentials": "yes",
    "allow_headers": "X-A",
    "allow_methods": "GET",
    "allow_origin": "*",
    "auth_token": "t",
    "base_url": "/b",
    "certfile": "c",
    "client_ca": "a",
    "default_kernel_name": "k",
    "expose_headers": "X-B",
    "ip": "10.0.0.1",
    "keyfile": "f",
    "list_kernels": "True",
    "max_age": "5",
    "max_kernels": "3",
    "port": "9999",
    "port_retries": "7",
    "ssl_version": "3",
    "trust_xheaders": "yes",
}


def test_defaults_are_those_of_3x(monkeypatch):
    """Without configuration every option has the value it has in Enterprise Gateway 3.x."""
    monkeypatch.delenv("EG_UNAUTHORIZED_USERS", raising=False)  # the tests' own, who may be root
    app = EnterpriseGatewayApp()
    assert {name: getattr(app, name) for name in UPSTREAM_DEFAULTS} == UPSTREAM_DEFAULTS


def test_each_option_tells_its_variable_and_default():
    """Class attributes ``<option>_env`` and ``<option>_default_value`` exist, and the help names the variable."""
    assert EnterpriseGatewayApp.port_env == "EG_PORT"
    assert EnterpriseGatewayApp.port_default_value == 8888
    assert EnterpriseGatewayApp.unauthorized_users_default_value == {"root"}
    assert EnterpriseGatewayApp.client_envs_default_value == []
    for name, variable in WITH_VARIABLE.items():
        assert getattr(EnterpriseGatewayApp, f"{name}_env") == variable.name
        assert variable.name in OPTIONS[name].help
        assert variable.option == name


def test_static_defaults_agree_with_the_table():
    """What --help shows as default is what the table gives when the variable is not set."""
    for name, variable in WITH_VARIABLE.items():
        shown = OPTIONS[name].default()
        if variable.default == ():
            assert not shown, name
        elif isinstance(variable.default, tuple):
            assert set(shown) == set(variable.default), name
        else:
            assert OPTIONS[name].default_value_repr() == repr(variable.default), name


@pytest.mark.parametrize(("option", "text"), KERNEL_GATEWAY_NAMES.items())
def test_kernel_gateway_variables_still_work(monkeypatch, option, text):
    """KG_ variables set the defaults that EG_ variables do not set."""
    monkeypatch.setenv(f"KG_{option.upper()}", text)
    expected = {"list_kernels": True, "trust_xheaders": True}.get(option)
    if expected is None:
        expected = int(text) if text.isdigit() and option != "max_age" else text
    assert getattr(EnterpriseGatewayApp(), option) == expected


def test_lists_and_sets_come_from_comma_texts(monkeypatch):
    """List options and set options read comma lists from the environment."""
    monkeypatch.setenv("EG_CLIENT_ENVS", "A, B")
    monkeypatch.setenv("EG_AUTHORIZED_USERS", "bob,alice")
    monkeypatch.setenv("EG_UNAUTHORIZED_USERS", "")
    monkeypatch.setenv("EG_AUTHORIZED_ORIGIN", "client.example")
    app = EnterpriseGatewayApp()
    assert app.client_envs == ["A", "B"]
    assert app.authorized_users == {"bob", "alice"}
    assert app.unauthorized_users == set()
    assert app.authorized_origin == "client.example"


def test_configuration_beats_the_environment(monkeypatch):
    """Variables only set defaults: a configured value wins, under either class name."""
    monkeypatch.setenv("EG_PORT", "1111")
    monkeypatch.setenv("EG_MAX_KERNELS", "5")
    config = Config({"EnterpriseGatewayConfigMixin": {"port": 2222}, "EnterpriseGatewayApp": {"max_kernels": 6}})
    app = EnterpriseGatewayApp(config=config)
    assert (app.port, app.max_kernels) == (2222, 6)


def test_the_command_line_beats_the_files(clean_environment):
    """Precedence: command line, then config file."""
    (clean_environment / "config" / "jupyter_enterprise_gateway_config.py").write_text(
        "c.EnterpriseGatewayApp.port = 2222\nc.EnterpriseGatewayApp.max_kernels = 4\n"
    )
    app = EnterpriseGatewayApp()
    app.parse_command_line(["--port=3333"])
    app.load_config_file()
    assert (app.port, app.max_kernels) == (3333, 4)


def test_jupyter_config_is_read_first(clean_environment):
    """jupyter_config applies, and jupyter_enterprise_gateway_config overrides it; JSON works too."""
    (clean_environment / "config" / "jupyter_config.py").write_text(
        "c.EnterpriseGatewayApp.max_kernels = 1\nc.EnterpriseGatewayApp.max_age = '7'\n"
    )
    (clean_environment / "config" / "jupyter_enterprise_gateway_config.json").write_text(
        '{"EnterpriseGatewayApp": {"max_kernels": 2}}'
    )
    app = EnterpriseGatewayApp()
    app.load_config_file()
    assert (app.max_kernels, app.max_age) == (2, "7")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("load_balancing_algorithm", "random"),
        ("availability_mode", "always"),
        ("transport_encryption", "maybe"),
        ("dynamic_config_interval", -1),
        ("port", "many"),
    ],
)
def test_unusable_values_are_refused(option, value):
    """A value that an option cannot take raises TraitError when it is assigned."""
    app = EnterpriseGatewayApp()
    with pytest.raises(TraitError):
        setattr(app, option, value)


def test_availability_mode_ignores_case():
    """``Replication`` is ``replication``."""
    app = EnterpriseGatewayApp()
    app.availability_mode = "Replication"
    assert app.availability_mode == app.AVAILABILITY_REPLICATION


def test_deprecated_names_set_the_new_option(expect_log):
    """``env_whitelist`` and ``env_process_whitelist`` still work, with a warning."""
    app = EnterpriseGatewayApp()
    app.log.propagate = True
    with expect_log("env_whitelist is deprecated, use client_envs"):
        app.env_whitelist = ["A"]
    with expect_log("env_process_whitelist is deprecated, use inherited_envs"):
        app.env_process_whitelist = ["B"]
    assert (app.client_envs, app.inherited_envs) == (["A"], ["B"])


def test_tls_is_off_without_options():
    """No TLS option, no context."""
    assert EnterpriseGatewayApp()._build_ssl_options() is None


def test_availability_and_persistence_agree():
    """Persistence without a mode means replication; a mode turns persistence on."""

    def persist(app):
        app.config.KernelSessionManager.enable_persistence = True

    assert make_app(persist).availability_mode == "replication"
    assert make_app(availability_mode="standalone").kernel_session_manager.enable_persistence is True
    plain = make_app()
    assert (plain.availability_mode, plain.kernel_session_manager.enable_persistence) == (None, False)


def test_options_reach_the_handlers_at_once():
    """What is copied into tornado settings at the start follows the option."""
    app = make_app(auth_token="a")
    settings = app.web_app.settings
    assert settings["eg_auth_token"] == "a"
    app.auth_token = "b"
    app.allow_origin = "https://x.example"
    app.ws_ping_interval = 5
    app.max_kernels = 3
    app.list_kernels = True
    app.authorized_users = {"bob"}
    app.default_kernel_name = "other"
    assert settings["eg_auth_token"] == "b"
    assert settings["eg_allow_origin"] == settings["allow_origin"] == "https://x.example"
    assert settings["ws_ping_interval"] == 5000
    assert settings["eg_max_kernels"] == 3
    assert settings["eg_list_kernels"] is True
    assert settings["eg_authorized_users"] == {"bob"}
    assert app.kernel_manager.default_kernel_name == "other"


def test_settings_have_the_names_of_3x():
    """Handlers and authorizers of third parties find the settings that Enterprise Gateway 3.x has."""
    expected = """kernel_manager session_manager contents_manager kernel_spec_manager kernel_spec_cache eg_auth_token
        eg_allow_credentials eg_allow_headers eg_allow_methods eg_allow_origin eg_expose_headers eg_max_age
        eg_max_kernels eg_inherited_envs eg_client_envs eg_kernel_headers eg_list_kernels eg_authorized_users
        eg_unauthorized_users allow_origin base_url allow_remote_access ws_ping_interval authorizer"""
    settings = make_app().web_app.settings
    assert set(expected.split()) <= set(settings)
    assert settings["contents_manager"] is None
    assert settings["allow_remote_access"] is True


def test_allowed_kernels_come_from_the_environment(monkeypatch):
    """EG_ALLOWED_KERNELS is the default of the kernelspec manager's allow-list."""
    monkeypatch.setenv("EG_ALLOWED_KERNELS", '["a","b"]')
    assert make_app().kernel_spec_manager.allowed_kernelspecs == {"a", "b"}


def test_the_debug_log_does_not_hold_the_configuration(caplog):
    """The token, and the rest of the configuration, is not written to the log when it is loaded."""
    app = EnterpriseGatewayApp(log_level=10)
    app.log.addHandler(caplog.handler)
    try:
        app.update_config(Config({"EnterpriseGatewayApp": {"auth_token": "very-secret"}}))
    finally:
        app.log.removeHandler(caplog.handler)
    assert app.auth_token == "very-secret"
    assert "very-secret" not in caplog.text
