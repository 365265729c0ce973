"""The table of environment variables: parsing, precedence, and what is wrong is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from enterprise_gateway.core import envvars
from enterprise_gateway.core.envvars import TABLE, Number, comma_list, declare


def test_every_help_is_a_sentence():
    """Each variable's help begins with a capital letter or a name, ends with a full stop, and says something."""
    for variable in TABLE.values():
        assert len(variable.help.split()) > 3, variable.name
        assert variable.help.rstrip().endswith("."), variable.name
        assert variable.help[0].isupper(), variable.name


def test_each_variable_is_documented_somewhere():
    """A variable either sets the default of an option or stands under a heading."""
    assert [name for name, variable in TABLE.items() if not variable.option and not variable.group] == []


def test_defaults_apply_when_nothing_is_set():
    """With an empty environment every variable gives its declared default."""
    for variable in TABLE.values():
        assert variable({}) == variable.default


def test_the_new_name_wins_over_the_legacy_one():
    """EG_ names beat the KG_ names of Kernel Gateway, whatever their order in the environment."""
    assert envvars.EG_PORT({"KG_PORT": "1", "EG_PORT": "2"}) == 2
    assert envvars.EG_PORT({"KG_PORT": "1"}) == 1
    assert envvars.EG_CLIENT_ENVS({"EG_ENV_WHITELIST": "A,B"}) == ("A", "B")
    assert envvars.EG_INHERITED_ENVS({"EG_ENV_PROCESS_WHITELIST": "A"}) == ("A",)
    assert envvars.EG_PERSISTENCE_ROOT({"EG_KERNEL_SESSION_LOCATION": "/data"}) == "/data"
    assert envvars.EG_REMOVE_CONTAINER({"REMOVE_CONTAINER": "False"}) is False


@pytest.mark.parametrize("name", ["EG_PROHIBITED_LOCAL_IPS", "EG_SENSITIVE_ENV_KEYS", "EG_CLIENT_ENVS"])
def test_a_blank_list_is_an_empty_list(name):
    """A list variable that is set to nothing lists nothing; upstream took it for one entry that matched everything."""
    assert TABLE[name]({name: ""}) == ()
    assert TABLE[name]({name: " , "}) == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("False", False), ("0", False), ("", False), ("no", False), ("TRUE", True), ("1", True)]
)
def test_yes_and_no_are_words(text, expected):
    """``False`` is false, also for EG_YARN_ENDPOINT_SECURITY_ENABLED, which any text switched on in upstream."""
    for name in ("EG_YARN_ENDPOINT_SECURITY_ENABLED", "EG_REMOTE_GSS_SSH", "EG_LIST_KERNELS"):
        assert TABLE[name]({name: text}) is expected


def test_a_blank_number_is_not_set():
    """Helm and Compose render unset numbers as blank texts."""
    assert envvars.EG_PORT({"EG_PORT": " ", "KG_PORT": "7"}) == 7
    assert envvars.EG_KERNEL_INFO_TIMEOUT({"EG_KERNEL_INFO_TIMEOUT": ""}) == 60.0


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("EG_PORT", "eight", "expected a whole number from 0 to 65535"),
        ("EG_PORT", "70000", "expected a whole number from 0 to 65535"),
        ("EG_KERNEL_LAUNCH_TIMEOUT", "-1", "expected a number of at least"),
        ("EG_KERNEL_LAUNCH_TIMEOUT", "nan", "expected a number of at least"),
        ("EG_PROHIBITED_UIDS", "0, x1", "'x1' is not a valid integer"),
        ("EG_REMOTE_GSS_SSH", "maybe", "expected true or false"),
        ("EG_YARN_MUTUAL_AUTHENTICATION", "sometimes", "REQUIRED, OPTIONAL, DISABLED"),
        ("EG_SSH_LOG_LEVEL", "loud", "expected a number or one of"),
    ],
)
def test_a_bad_value_names_variable_and_text(name, text, problem):
    """The error says which variable holds which text, and what is expected."""
    with pytest.raises(ValueError, match=name) as caught:
        TABLE[name]({name: text})
    assert problem in str(caught.value)
    assert text in str(caught.value)


def test_ids_ignore_blanks():
    """EG_PROHIBITED_UIDS takes blanks between and around the ids; set to nothing it prohibits nothing."""
    assert envvars.EG_PROHIBITED_UIDS({"EG_PROHIBITED_UIDS": " 0, 1000 ,,"}) == (0, 1000)
    assert envvars.EG_PROHIBITED_UIDS({"EG_PROHIBITED_UIDS": ""}) == ()
    assert envvars.EG_PROHIBITED_UIDS({}) == (0,)


@pytest.mark.parametrize("text", ['["a", "b"]', "'a','b'", "a,b", '\'["a","b"]\''])
def test_allowed_kernels_are_taken_as_the_chart_writes_them(text):
    """EG_ALLOWED_KERNELS may be a JSON list, quoted names or plain ones; ``null`` allows everything."""
    assert envvars.EG_ALLOWED_KERNELS({"EG_ALLOWED_KERNELS": text}) == ("a", "b")
    assert envvars.EG_ALLOWED_KERNELS({"EG_ALLOWED_KERNELS": "null"}) == ()
    assert envvars.EG_ALLOWED_KERNELS({"EG_KERNEL_WHITELIST": text}) == ("a", "b")


def test_certificates_are_verified_unless_said_otherwise():
    """EG_YARN_CERT_BUNDLE is a yes, a no, or a file."""
    read = envvars.EG_YARN_CERT_BUNDLE
    assert [read({"EG_YARN_CERT_BUNDLE": text}) for text in ("", "True", "false", "/ca.pem")] == [
        True,
        True,
        False,
        "/ca.pem",
    ]


def test_a_variable_is_declared_once():
    """Two declarations of one name would hide each other's help and type."""
    with pytest.raises(KeyError, match="EG_PORT is declared twice"):
        declare("EG_PORT", Number(int, 0), 1, "Again.")


def test_check_names_every_problem(monkeypatch):
    """One start shows all variables that cannot be used, not only the first."""
    monkeypatch.setenv("EG_PORT", "x")
    monkeypatch.setenv("EG_PROHIBITED_GIDS", "wheel")
    with pytest.raises(ValueError, match=r"EG_PORT=(.|\n)*EG_PROHIBITED_GIDS=") as caught:
        envvars.check()
    assert len(str(caught.value).splitlines()) == 2


def test_values_are_read_at_use(monkeypatch):
    """Changing the environment between two uses changes the value: nothing is read at import."""
    monkeypatch.setenv("EG_POLL_INTERVAL", "0.25")
    assert envvars.EG_POLL_INTERVAL() == 0.25
    monkeypatch.setenv("EG_POLL_INTERVAL", "2")
    assert envvars.EG_POLL_INTERVAL() == 2.0


def test_a_bad_variable_does_not_break_imports():
    """Importing every module works with an unusable environment; only the start of the application complains."""
    code = "import enterprise_gateway.enterprisegatewayapp, enterprise_gateway.config"
    env = {**os.environ, "EG_PROHIBITED_UIDS": "x", "EG_PORT": "x", "EG_LIST_KERNELS": "x"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


def test_lists_may_have_blanks():
    """Blanks around entries are no part of them."""
    assert comma_list(" a , b,c ") == ("a", "b", "c")
