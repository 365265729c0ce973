"""What a kernel's environment is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from enterprise_gateway.core.errors import InvalidRequestError
from enterprise_gateway.core.kernelenv import (
    BASE_VARIABLES,
    MAX_TOTAL_BYTES,
    MAX_UNRESTRICTED_LENGTH,
    MAX_VALUE_LENGTH,
    MAX_VARIABLES,
    NEVER_PASSED,
    accept_client_variables,
    build,
    finish,
    redact,
)


def made_of(
    process: dict[str, str] | None = None,
    client: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
    client_envs: Iterable[str] = (),
    inherited_envs: Iterable[str] = (),
) -> dict[str, str]:
    """Return the environment that :func:`build` makes of these, without what every kernel gets."""
    env = build(
        process=process or {},
        client=client or {},
        spec=spec or {},
        client_envs=list(client_envs),
        inherited_envs=list(inherited_envs),
    )
    assert env.pop("KERNEL_GATEWAY") == "1"
    return env


@pytest.mark.parametrize(
    ("requested", "client_envs", "accepted"),
    [
        pytest.param({}, [], {}, id="nothing"),
        pytest.param({"KERNEL_USERNAME": "al", "OTHER": "x"}, [], {"KERNEL_USERNAME": "al"}, id="KERNEL_ always"),
        pytest.param({"A": "1", "B": "2"}, ["A"], {"A": "1"}, id="what is named"),
        pytest.param({"AB": "1", "a": "2", "A_": "3", "_A": "4"}, ["A"], {}, id="by the whole name, in its case"),
        pytest.param({"kernel_x": "1", "KERNELX": "2", "XKERNEL_": "3", "KERNEL": "4"}, [], {}, id="by that prefix"),
        pytest.param({"A": "1", "B_2": "2"}, ["*"], {"A": "1", "B_2": "2"}, id="a star is all"),
        pytest.param({"AB": "1", "A*": "2"}, ["A", "B*"], {}, id="a star within a name is no star"),
        pytest.param({"PATH": "/evil", "A": "1"}, ["*"], {"A": "1"}, id="all but what changes the program"),
        pytest.param({"PATH": "/mine"}, ["PATH", "*"], {"PATH": "/mine"}, id="unless it is named"),
        pytest.param({"A": ""}, ["A"], {"A": ""}, id="empty values"),
        pytest.param({"A": "Zoë 李 🎉\tx"}, ["A"], {"A": "Zoë 李 🎉\tx"}, id="any language, and tabs"),
        pytest.param({"A": 1, "B": None, "C D": "x"}, [], {}, id="what is dropped need not be right"),
    ],
)
def test_a_client_sets_what_the_administrator_allows(
    requested: dict[str, Any], client_envs: list[str], accepted: dict[str, str]
) -> None:
    """``KERNEL_*`` and the names in ``client_envs``; the rest of a request is dropped without a word."""
    assert accept_client_variables(requested, client_envs) == accepted


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "SHELL", "IFS", "ENV", "BASH_ENV", "BASH_FUNC_ls%%", "PROMPT_COMMAND", "PS4", "ZDOTDIR"),
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_", "DYLD_INSERT_LIBRARIES", "GLIBC_TUNABLES", "GCONV_PATH"),
        *("PYTHONPATH", "PYTHONSTARTUP", "PYTHON", "PYSPARK_PYTHON", "SPARK_HOME", "HADOOP_CONF_DIR", "YARN_OPTS"),
        *("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "NODE_OPTIONS", "RUBYOPT", "PERL5LIB", "PERLLIB"),
        *("R_PROFILE_USER", "R_LIBS", "GIT_SSH_COMMAND", "SSH_AUTH_SOCK", "SUDO_ASKPASS"),
        *("EG_AUTH_TOKEN", "EG_ANYTHING", "KG_AUTH_TOKEN", "JPY_PARENT_PID", "JUPYTER_PATH", "IPYTHONDIR"),
        *("HTTP_PROXY", "https_proxy", "No_Proxy", "ld_preload", "Path"),
    ],
)
def test_a_star_does_not_let_other_programs_be_run(name: str) -> None:
    """What makes a loader, an interpreter or a shell do something else is allowed by its name only, in any case."""
    assert accept_client_variables({name: "x"}, ["*"]) == {}


@pytest.mark.parametrize(
    "name",
    ["MYPATH", "PATH_TO_DATA", "HOMEPAGE", "ENVIRONMENT", "R_VERSION", "EGG", "HTTP_PROXY_HOST"],
)
def test_names_that_only_resemble_those_are_allowed_by_a_star(name: str) -> None:
    """Whole names are compared with whole names."""
    assert accept_client_variables({name: "x"}, ["*"]) == {name: "x"}


@pytest.mark.parametrize("env", [None, [], "A=1", 1, True, [["A", "1"]]])
def test_an_environment_is_an_object(env: Any) -> None:
    """Anything else is the client's mistake, not an empty environment."""
    with pytest.raises(InvalidRequestError, match="^'env' must be a JSON object of strings.$"):
        accept_client_variables(env, ["*"])


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], ["x"], {"a": "b"}])
def test_a_value_is_a_text(value: Any) -> None:
    """A number is not guessed to be one."""
    with pytest.raises(InvalidRequestError, match="^Environment variable 'KERNEL_X' value must be a string$"):
        accept_client_variables({"KERNEL_X": value}, [])


@pytest.mark.parametrize("value", ["$HOME", "${KERNEL_ID}", "`id`", "a\nb", "a\rb", "a\0b", "\x1b[2J", "\x7f"])
def test_a_value_is_nothing_that_a_shell_would_run(value: str) -> None:
    """Nor what would forge a line of a log or end a C string; the answer does not repeat it."""
    with pytest.raises(InvalidRequestError, match="^Environment variable 'KERNEL_X' contains prohibited characters$"):
        accept_client_variables({"KERNEL_X": value}, [])


def test_an_unrestricted_variable_may_hold_a_script() -> None:
    """All but NUL, and longer than others; only those that are named are."""
    script = "for i in `ls`; do\n  echo $i\ndone\n" * 1000
    assert accept_client_variables({"KERNEL_X": script}, [], ["KERNEL_X"]) == {"KERNEL_X": script}
    for value in (f"{script}\0", "x" * (MAX_UNRESTRICTED_LENGTH + 1)):
        with pytest.raises(InvalidRequestError):
            accept_client_variables({"KERNEL_X": value}, [], ["KERNEL_X"])
    with pytest.raises(InvalidRequestError):
        accept_client_variables({"KERNEL_XY": script}, [], ["KERNEL_X"])


@pytest.mark.parametrize("name", ["KERNEL_X Y", "KERNEL_X=", "KERNEL_X\n", "KERNEL_X-Y", "KERNEL_é", "KERNEL_\0"])
def test_a_name_is_one_that_a_shell_takes(name: str) -> None:
    """Letters of ASCII, digits and underscores."""
    with pytest.raises(InvalidRequestError, match="must match"):
        accept_client_variables({name: "x"}, [])


@pytest.mark.parametrize("name", ["", "1A", "A B", "A.B"])
def test_an_allowed_name_must_still_be_a_valid_name(name: str) -> None:
    """An administrator cannot allow what is no name."""
    with pytest.raises(InvalidRequestError, match="must match"):
        accept_client_variables({name: "x"}, [name])


def test_half_a_character_is_refused() -> None:
    """JSON can say one half of a surrogate pair, which no environment can hold."""
    for unrestricted in ([], ["KERNEL_X"]):
        with pytest.raises(InvalidRequestError, match="is not valid Unicode text"):
            accept_client_variables({"KERNEL_X": "\ud83c"}, [], unrestricted)


def test_values_names_and_requests_have_their_size() -> None:
    """Up to the limit all is well, one more is refused; what is dropped does not count."""
    fits = {f"KERNEL_{number}": "x" for number in range(MAX_VARIABLES)}
    assert accept_client_variables({**fits, "KERNEL_0": "x" * MAX_VALUE_LENGTH, "OTHER": "x"}, [])
    longest = f"KERNEL_{'X' * (MAX_VALUE_LENGTH - 7)}"
    assert accept_client_variables({longest: "x"}, [])
    wide = {f"KERNEL_{number:03}": "李" * (MAX_VALUE_LENGTH - 200) for number in range(MAX_TOTAL_BYTES // 12_000)}
    assert accept_client_variables(wide, [])
    for refused in (
        {"KERNEL_X": "x" * (MAX_VALUE_LENGTH + 1)},
        {f"{longest}X": "x"},
        {**fits, "KERNEL_X": "x"},
        {**wide, "KERNEL_X": "李" * MAX_VALUE_LENGTH, "KERNEL_Y": "李" * MAX_VALUE_LENGTH},
    ):
        with pytest.raises(InvalidRequestError) as caught:
            accept_client_variables(refused, [])
        assert len(str(caught.value)) < 5000


def test_no_refusal_repeats_a_value() -> None:
    """It may be a password, and answers are logged."""
    for value in ("hunter2$", "hunter2\0", "hunter2" * 1000, "hunter2\ud83c"):
        with pytest.raises(InvalidRequestError) as caught:
            accept_client_variables({"KERNEL_PASSWORD": value}, [])
        assert "hunter2" not in str(caught.value)


# The layers; later ones win.


@pytest.mark.parametrize(
    ("layers", "value"),
    [
        pytest.param({"process": {"X": "process"}}, None, id="the gateway's own does not reach kernels"),
        pytest.param({"process": {"X": "process"}, "inherited_envs": ["X"]}, "process", id="what is named does"),
        pytest.param({"process": {"X": "process"}, "inherited_envs": ["*"]}, None, id="a star is no name"),
        pytest.param({"process": {"X": "process"}, "inherited_envs": ["x", "X_", ""]}, None, id="nor is another"),
        pytest.param({"inherited_envs": ["X"]}, None, id="what is not set stays so"),
        pytest.param({"client": {"X": "client"}}, "client", id="the client's"),
        pytest.param({"spec": {"X": "spec"}}, "spec", id="the kernelspec's"),
        pytest.param(
            {"process": {"X": "process"}, "client": {"X": "client"}, "inherited_envs": ["X"]}, "client", id="2 < 3"
        ),
        pytest.param({"client": {"X": "client"}, "spec": {"X": "spec"}}, "spec", id="3 < 4, allowed by a star"),
        pytest.param(
            {"client": {"X": "client"}, "spec": {"X": "spec"}, "client_envs": ["X"]}, "client", id="4 < 5, named"
        ),
        pytest.param(
            {"process": {"X": "process"}, "spec": {"X": "spec"}, "inherited_envs": ["X"]}, "process", id="4 < 5, too"
        ),
        pytest.param({"process": {"X": "process"}, "spec": {"X": "spec"}}, "spec", id="what is not inherited loses"),
    ],
)
def test_the_layers_come_in_their_order(layers: dict[str, Any], value: str | None) -> None:
    """Base, inherited, client's, kernelspec's, and again those that the administrator has named."""
    assert made_of(**layers).get("X") == value


def test_kernel_variables_of_a_client_override_the_kernelspec() -> None:
    """The kernelspec's are defaults for them; those of the gateway's own process are nobody's."""
    process = {"KERNEL_X": "process", "KERNEL_Z": "process"}
    spec = {"KERNEL_X": "spec", "KERNEL_Y": "spec"}
    assert made_of(process, {"KERNEL_X": "client"}, spec) == {
        "KERNEL_X": "client",
        "KERNEL_Y": "spec",
    }


@pytest.mark.parametrize("name", sorted(BASE_VARIABLES))
def test_every_kernel_has_what_any_program_needs(name: str) -> None:
    """Of the gateway's own environment, and each of it may be overridden by client and kernelspec."""
    assert made_of({name: "process"}) == {name: "process"}
    assert made_of({name: "process"}, client={name: "client"}) == {name: "client"}
    assert made_of({name: "process"}, spec={name: "spec"}) == {name: "spec"}


@pytest.mark.parametrize(
    "name", ["EG_PORT", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PYTHONPATH", "path", "LC_PAPER", "XPATH", "USERNAME"]
)
def test_nothing_else_of_the_gateway_reaches_a_kernel(name: str) -> None:
    """Its secrets least of all, and no name that only resembles one that does."""
    assert made_of({name: "process"}) == {}


@pytest.mark.parametrize("name", sorted(NEVER_PASSED))
def test_some_variables_reach_no_kernel_at_all(name: str) -> None:
    """Neither from the gateway, a client or a kernelspec, whatever the administrator allows."""
    x = {name: "x"}
    assert made_of(x, x, x, client_envs=[name, "*"], inherited_envs=[name]) == {}
    finish(x, kernel_id="i", language="", impersonation_enabled=False, username="")
    assert name not in x


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${PATH}:/opt", "/bin:/opt"),
        ("$PATH", "/bin"),
        ("${KERNEL_USERNAME}", "alice"),
        ("$KERNEL_USERNAME-x", "alice-x"),
        ("${INHERITED}", "inherited"),
        ("${SECRET}", "${SECRET}"),
        ("${OTHER}", "${OTHER}"),
        ("${unknown} ${PATH}", "${unknown} /bin"),
        ("$$PATH", "$PATH"),
        ("${PATH", "${PATH"),
        ("${}", "${}"),
        ("$", "$"),
        ("$(id)", "$(id)"),
        ("{PATH}", "{PATH}"),
        ("%PATH%", "%PATH%"),
        ("", ""),
        (5, "5"),
        (True, "True"),
    ],
)
def test_a_kernelspec_may_refer_to_the_layers_above(text: Any, value: str) -> None:
    """To those, and to nothing else: neither to the gateway's secrets nor to its own entries."""
    env = made_of(
        {"PATH": "/bin", "INHERITED": "inherited", "SECRET": "hunter2"},
        client={"KERNEL_USERNAME": "alice"},
        spec={"OTHER": "other", "X": text},
        inherited_envs=["INHERITED"],
    )
    assert env["X"] == value


def test_what_a_value_says_is_not_replaced() -> None:
    """A client's value that looks like a reference is text, in its own variable and where the kernelspec puts it."""
    env = made_of({"PATH": "/bin"}, client={"KERNEL_X": "${PATH}"}, spec={"Y": "${KERNEL_X}"})
    assert (env["KERNEL_X"], env["Y"]) == ("${PATH}", "${PATH}")


def test_nothing_that_was_given_is_changed() -> None:
    """One user's variables never reach another's kernel: an environment is made anew for each."""
    process, client, spec = {"PATH": "/bin"}, {"KERNEL_X": "1"}, {"Y": "$PATH"}
    env = build(process=process, client=client, spec=spec, client_envs=(), inherited_envs=())
    env["Z"] = "z"
    assert (process, client, spec) == ({"PATH": "/bin"}, {"KERNEL_X": "1"}, {"Y": "$PATH"})


# What the gateway itself says.


def test_the_gateways_own_variables_cannot_be_set() -> None:
    """Not by a client that says it is somebody else, in another kernel, with another user's rights."""
    env = dict.fromkeys(
        ("KERNEL_ID", "KERNEL_USERNAME", "EG_IMPERSONATION_ENABLED", "EG_DEPLOYMENT_ID", "EG_REMOTE_PWD"),
        "forged",
    )
    finish(env, kernel_id="i", language="Python", impersonation_enabled=True, username="al", deployment_id="d")
    assert env == {
        "KERNEL_ID": "i",
        "KERNEL_LANGUAGE": "python",
        "KERNEL_USERNAME": "al",
        "EG_IMPERSONATION_ENABLED": "True",
        "EG_DEPLOYMENT_ID": "d",
    }


@pytest.mark.parametrize(
    ("given", "language", "expected"),
    [
        ({}, "Python", "python"),
        ({}, "R", "r"),
        ({}, "", "unknown-kernel-language"),
        ({"KERNEL_LANGUAGE": "Scala"}, "Python", "scala"),
        ({"KERNEL_LANGUAGE": ""}, "Python", "python"),
    ],
)
def test_a_kernel_knows_its_language(given: dict[str, str], language: str, expected: str) -> None:
    """The kernelspec's unless the client says another, in lower case."""
    env = dict(given)
    finish(env, kernel_id="i", language=language, impersonation_enabled=False, username="al")
    assert env["KERNEL_LANGUAGE"] == expected
    assert env["EG_IMPERSONATION_ENABLED"] == "False"
    assert "EG_DEPLOYMENT_ID" not in env


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], {"DB_PASSWORD", "PASSWORD", "token", "PATH"}),
        ([""], {"DB_PASSWORD", "PASSWORD", "token", "PATH"}),
        (["PASSWORD"], {"token", "PATH"}),
        (["password", "TOKEN"], {"PATH"}),
        (["PASS", ""], {"token", "PATH"}),
        (["PASSWORDS", ".*", "*"], {"DB_PASSWORD", "PASSWORD", "token", "PATH"}),
        (["hunter2"], {"DB_PASSWORD", "PASSWORD", "token", "PATH"}),
        (["A"], {"token"}),
    ],
)
def test_what_a_sensitive_word_is_part_of_is_masked(words: list[str], shown: set[str]) -> None:
    """Words are compared with names, without case and without patterns; an empty one does not match everything."""
    env = {"DB_PASSWORD": "hunter2", "PASSWORD": "", "token": "hunter2", "PATH": "/bin"}
    redacted = redact(env, words, "***")
    assert redacted == {name: value if name in shown else "***" for name, value in env.items()}
    assert env["DB_PASSWORD"] == "hunter2"


def test_words_that_can_be_read_once_hold_for_all() -> None:
    """The mask is the administrator's, and may be empty; the words may come from anything that can be gone through."""
    assert redact({"A_KEY": "1", "B_KEY": "2"}, iter(["key"]), "") == {"A_KEY": "", "B_KEY": ""}
