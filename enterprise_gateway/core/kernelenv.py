"""A kernel's environment: which layers it is made of, in which order, and what a client may put into it.

The layers, later ones win:

1. the *base*: the few variables of :data:`BASE_VARIABLES` that any program needs, from the gateway's process,
2. the *inherited*: gateway variables that the administrator names in ``inherited_envs``,
3. the *client's*: ``KERNEL_*`` and what the administrator names in ``client_envs``,
4. the kernelspec's ``env``, where ``${NAME}`` is replaced from the layers above,
5. the client's and the inherited ones again, if they start with ``KERNEL_`` or are named literally in
   ``client_envs`` or ``inherited_envs``: these override the kernelspec,
6. the gateway's own (:func:`finish`), which cannot be overridden.

The gateway's environment reaches a kernel through layers 1 and 2 only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from string import Template

from .errors import InvalidRequestError

BASE_VARIABLES = frozenset(
    {"PATH", "HOME", "LANG", "LANGUAGE", "LOGNAME", "SHELL", "TERM", "TMPDIR", "TZ", "USER"}
    | {f"LC_{name}" for name in ("ALL", "COLLATE", "CTYPE", "MESSAGES", "MONETARY", "NUMERIC", "TIME")}
)
"""What every kernel gets of the gateway's environment, whatever ``inherited_envs`` says."""

NEVER_PASSED = frozenset({"EG_AUTH_TOKEN", "KG_AUTH_TOKEN", "EG_REMOTE_PWD", "LS_COLORS", "PYTHONEXECUTABLE"})
"""Removed from a kernel's environment, wherever they come from."""

MAX_VALUE_LENGTH = 4096
MAX_UNRESTRICTED_LENGTH = 100_000  # the system takes 128 KiB for one variable
MAX_VARIABLES = 512
MAX_TOTAL_BYTES = 1 << 19
PROHIBITED_CHARACTERS = re.compile(r"[$`\x00-\x08\x0a-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# What makes a loader, an interpreter or a shell run other code than the one that was started, or reconfigures the
# gateway's own tools: `client_envs = ["*"]` does not let these through, naming them does.
_LOADER_VARIABLE = re.compile(
    r"(LD_|DYLD_|GLIBC_|MALLOC_|PYTHON|PYSPARK_|SPARK_|HADOOP_|YARN_|PERL5?|RUBY|LUA_|GIT_|SSH_|SUDO_|BASH_FUNC_).*\Z"
    r"|(EG_|KG_|JPY_|JUPYTER|IPYTHON|OPENSSL_|SSL_CERT_|R_(HOME|PROFILE|ENVIRON|LIBS)).*\Z"
    r"|(PATH|HOME|SHELL|BASH_ENV|ENV|ZDOTDIR|IFS|SHELLOPTS|BASHOPTS|PS4|PROMPT_COMMAND|GCONV_PATH)\Z"
    r"|(NODE_OPTIONS|NODE_PATH|JAVA_HOME|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|JDK_JAVA_OPTIONS|CLASSPATH)\Z"
    r"|(https?|ftp|all|no)_proxy\Z",
    re.IGNORECASE,
)


def accept_client_variables(
    requested: object, client_envs: Iterable[str], unrestricted: Collection[str] = ()
) -> dict[str, str]:
    """Return the variables of a request that may reach the kernel; others are dropped without a word.

    Parameters
    ----------
    requested
        The request's ``env``: must be an object of strings.
    client_envs
        Names that the administrator allows in addition to ``KERNEL_*``; ``*`` allows all but loader variables.
    unrestricted
        Names whose values may hold any character but NUL and be of any length.

    Raises
    ------
    InvalidRequestError
        ``env`` is no object, or an accepted variable has an unusable name or value. The value is never echoed.
    """
    if not isinstance(requested, Mapping):
        raise InvalidRequestError("'env' must be a JSON object of strings.")
    allowed = set(client_envs)
    accepted = {}
    for name, value in requested.items():
        literally = name in allowed
        by_star = "*" in allowed and not _LOADER_VARIABLE.match(name)
        if literally or by_star or name.startswith("KERNEL_"):
            _check_variable(name, value, name in unrestricted)
            accepted[name] = value
    if len(accepted) > MAX_VARIABLES or sum(len(n) + len(v.encode()) for n, v in accepted.items()) > MAX_TOTAL_BYTES:
        raise InvalidRequestError(
            f"'env' must not hold more than {MAX_VARIABLES} variables or {MAX_TOTAL_BYTES} bytes for the kernel."
        )
    return accepted


def _check_variable(name: str, value: object, unrestricted: bool) -> None:
    if not _NAME.match(name):
        raise InvalidRequestError(f"Environment variable name {name[:100]!r} must match [A-Za-z_][A-Za-z0-9_]*.")
    if not isinstance(value, str):
        raise InvalidRequestError(f"Environment variable '{name}' value must be a string")
    if "\0" in value or (not unrestricted and PROHIBITED_CHARACTERS.search(value)):
        raise InvalidRequestError(f"Environment variable '{name}' contains prohibited characters")
    if len(value) > (MAX_UNRESTRICTED_LENGTH if unrestricted else MAX_VALUE_LENGTH) or len(name) > MAX_VALUE_LENGTH:
        raise InvalidRequestError(f"Environment variable '{name}' exceeds maximum length")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"Environment variable '{name}' is not valid Unicode text.") from error


def build(
    *,
    process: Mapping[str, str],
    client: Mapping[str, str],
    spec: Mapping[str, str],
    client_envs: Collection[str],
    inherited_envs: Collection[str],
) -> dict[str, str]:
    """Return layers 1 to 5 (see the module's text) for one launch; called by the provisioner.

    ``client`` has passed :func:`accept_client_variables`; ``process`` is the gateway's own environment.
    """
    inherited = {name: value for name, value in process.items() if name in inherited_envs}
    env = {name: value for name, value in process.items() if name in BASE_VARIABLES}
    env.update(inherited)
    env.update(client)
    substitutes = dict(env)
    env.update({name: Template(str(value)).safe_substitute(substitutes) for name, value in spec.items()})
    for name, value in {**inherited, **client}.items():
        if name.startswith("KERNEL_") or name in inherited_envs or name in client_envs:
            env[name] = value
    env["KERNEL_GATEWAY"] = "1"
    for name in NEVER_PASSED:
        env.pop(name, None)
    return env


def finish(
    env: MutableMapping[str, str],
    *,
    kernel_id: str,
    language: str,
    impersonation_enabled: bool,
    username: str,
    deployment_id: str = "",
) -> None:
    """Put the gateway's own variables (layer 6) into ``env``; called by ``launch_process`` of the base proxy."""
    env["KERNEL_ID"] = kernel_id
    env["KERNEL_LANGUAGE"] = (env.get("KERNEL_LANGUAGE") or language or "unknown-kernel-language").lower()
    env["KERNEL_USERNAME"] = username
    env["EG_IMPERSONATION_ENABLED"] = str(impersonation_enabled)
    if deployment_id:
        env["EG_DEPLOYMENT_ID"] = deployment_id
    for name in NEVER_PASSED:
        env.pop(name, None)


def redact(env: Mapping[str, str], sensitive_keys: Iterable[str], mask: str) -> dict[str, str]:
    """Return ``env`` for a log line: values whose name contains a sensitive word are masked.

    Parameters
    ----------
    sensitive_keys
        Substrings of names, compared without case; empty ones are ignored.
    """
    words = [word.lower() for word in sensitive_keys if word]
    return {name: mask if any(word in name.lower() for word in words) else value for name, value in env.items()}
