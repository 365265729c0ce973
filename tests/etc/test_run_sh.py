"""The kernelspecs' ``bin/run.sh``: option lists become arguments, and nothing of them is ever executed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

KERNELSPECS = Path(__file__).parents[2] / "etc" / "kernelspecs"
SPARK_SPECS = sorted(path.parents[1].name for path in KERNELSPECS.glob("*/bin/run.sh"))
RECORD = r"""#!/usr/bin/env bash
{ printf '%s\0' "${0##*/}" "$@"; } >>"$RECORD"
[[ ${0##*/} != sudo ]] || exit 0
cat >"$RECORD.stdin"
env >"$RECORD.env"
"""


class RunSh:
    """A kernelspec installed with a Spark whose spark-submit, and a sudo, that record how they are called."""

    def __init__(self, name: str, root: Path) -> None:
        self.folder = root / name
        self.work = root / "work"
        self.record = root / "record"
        self.messages = ""
        spark = root / "spark home" / "bin"
        shutil.copytree(KERNELSPECS / name, self.folder, ignore=shutil.ignore_patterns("scripts", "logo*"))
        (self.folder / "lib").mkdir()
        for jar in ("toree-assembly-0.5.0-incubating.jar", "toree-launcher-4.0.0.jar"):
            (self.folder / "lib" / jar).touch()
        for directory in (self.work, spark, root / "bin"):
            directory.mkdir(parents=True)
        for program in (spark / "spark-submit", root / "bin" / "sudo"):
            program.write_text(RECORD)
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "HOME": str(root),
            "SPARK_HOME": str(spark.parent),
            "RECORD": str(self.record),
        }

    def __call__(self, *arguments: str, **environment: str) -> list[str]:
        """Run it and return the command line of what it ran; its first word is that program's name."""
        assert self.exit_code(*arguments, **environment) == 0, self.messages
        return self.record.read_text().split("\0")[:-1]

    def refuses(self, **environment: str) -> bool:
        """Tell whether it fails without running anything."""
        return self.exit_code(**environment) != 0 and not self.record.exists()

    def exit_code(self, *arguments: str, **environment: str) -> int:
        """Run it; what it runs is in ``record``."""
        self.record.unlink(missing_ok=True)
        done = subprocess.run(
            [self.folder / "bin" / "run.sh", *arguments],
            cwd=self.work,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        self.messages = done.stderr
        return done.returncode

    def spark_options(self, text: str, **environment: str) -> list[str]:
        """Return the arguments that SPARK_OPTS becomes."""
        command = self(SPARK_OPTS=text, **environment)
        own = next(i for i, word in enumerate(command) if word.startswith(str(self.folder)))
        return command[1 : own - (1 if command[own - 1] == "--jars" else 0)]


@pytest.fixture(params=SPARK_SPECS)
def any_run_sh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunSh]:
    """Each of the Spark kernelspecs; after the test nothing was written where commands would have written."""
    run_sh = RunSh(request.param, tmp_path)
    yield run_sh
    assert not list(run_sh.work.iterdir())


@pytest.fixture
def run_sh(tmp_path: Path) -> RunSh:
    """One of them, for what options.sh does for all."""
    return RunSh("spark_python_yarn_client", tmp_path)


HOSTILE = [
    "--name x & touch f #",
    "--name x; touch f",
    "$(touch f) `touch f`",
    "${X:-$(touch f)} ${X:-`touch f`}",
    "${IFS}touch${IFS}f | touch f || touch f && touch f",
    "x\ntouch f\n",
    "> f 2> f < /dev/null <(touch f) >(touch f)",
    "* ? ~ ~root {a,b} [a-z] !! %1 \\",
    "${!RECORD} ${RECORD@P} ${#RECORD} ${RECORD/x/y} $((1+1)) $RECORD $@ $0",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_option_lists_execute_nothing(any_run_sh: RunSh, text: str) -> None:
    """Whatever a list, a variable in it, or an argument holds, arrives as arguments."""
    command = any_run_sh(text, SPARK_OPTS=text, TOREE_OPTS=text, LAUNCH_OPTS=text)
    assert command[-1] == text
    variable = any_run_sh(
        text,
        SPARK_OPTS="--name ${KERNEL_USERNAME} ${KERNEL_EXTRA_SPARK_OPTS:-}",
        KERNEL_USERNAME=text,
        KERNEL_EXTRA_SPARK_OPTS=text,
    )
    assert variable[1:3] == ["--name", text]
    assert command[0] == variable[0] == "spark-submit"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--name x & touch f #", ["--name", "x", "&", "touch", "f", "#"]),
        ("$(touch f) `a b`", ["$(touch", "f)", "`a", "b`"]),
        ("a\nb\tc  \n d", ["a", "b", "c", "d"]),
        ("""--conf 'a=b "c"' --conf "d=e 'f'" g\\ h""", ["--conf", 'a=b "c"', "--conf", "d=e 'f'", "g h"]),
        ("""'' "" a''b""", ["", "", "ab"]),
        (r""" "\"\$\`\\\n" \$ '\n' """, [r'"$`\\n', "$", r"\n"]),
        ("", []),
    ],
)
def test_lists_are_split_as_by_a_shell(run_sh: RunSh, text: str, words: list[str]) -> None:
    """Quotes and backslashes keep words together, white space separates them."""
    assert run_sh.spark_options(text) == words


COMPARE = r"""
source "$OPTIONS_SH"
while IFS= read -r text; do
    split_options "$text"
    eval "expected=($text)"
    [[ ${WORDS[*]@Q} == "${expected[*]@Q}" ]] || printf '%s: %s, not %s\n' "$text" "${WORDS[*]@Q}" "${expected[*]@Q}"
done
"""


def test_random_quoting_is_split_as_bash_does() -> None:
    """Words, blanks, quotes and backslashes in any order give what bash makes of them."""
    random = Random(20)
    texts = ["".join(random.choices("abc  '\"\\", k=random.randint(1, 16))) for _ in range(3000)]
    closed = [text for text in texts if _is_closed(text) and not text.endswith("\\")]
    assert len(closed) > 500
    done = subprocess.run(
        ["bash", "-c", COMPARE],
        env={**os.environ, "OPTIONS_SH": str(KERNELSPECS / "spark_python_yarn_client" / "bin" / "options.sh")},
        input="\n".join(closed) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout + done.stderr == ""


def _is_closed(text: str) -> bool:
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True


def test_variables_stand_for_one_piece_of_a_word(run_sh: RunSh) -> None:
    """``${NAME}`` and ``${NAME:-default}`` are replaced, and their values neither split nor looked at again."""
    variables = {"USER_": "a b --proxy-user root", "QUOTE": "'", "REF": "${USER_}", "EMPTY": ""}
    options = run_sh.spark_options(
        "--name ${USER_} x${QUOTE}y '${USER_}' \"${USER_}!\" ${REF} ${NOT_SET:-d e} ${EMPTY:-z} ${EMPTY} e${EMPTY}f",
        **variables,
    )
    value = variables["USER_"]
    assert options == ["--name", value, "x'y", "${USER_}", value + "!", "${USER_}", "d e", "z", "ef"]


def test_variables_that_hold_options_are_split(run_sh: RunSh) -> None:
    """A variable whose name ends in ``_OPTS`` is a list of options, in which nothing is replaced."""
    extra = "--conf 'a=b c' --name ${PATH} `x`"
    options = run_sh.spark_options("--one ${KERNEL_EXTRA_SPARK_OPTS:-} --two", KERNEL_EXTRA_SPARK_OPTS=extra)
    assert options == ["--one", "--conf", "a=b c", "--name", "${PATH}", "`x`", "--two"]
    assert run_sh.spark_options('--one "${X_OPTS}"', X_OPTS="a b") == ["--one", "a b"]


def test_an_open_quote_ends_it(run_sh: RunSh) -> None:
    """Half a quote is an error, said in a line, and nothing is started."""
    assert run_sh.refuses(SPARK_OPTS="--name 'x")
    assert "without its other half" in run_sh.messages


def test_the_secret_never_becomes_an_argument(run_sh: RunSh) -> None:
    """An option list that names the launch's secret is refused."""
    assert run_sh.refuses(SPARK_OPTS="--name ${EG_LAUNCH_SECRET}", EG_LAUNCH_SECRET="s3cret")


def test_spark_home_is_needed(any_run_sh: RunSh) -> None:
    """Without a Spark distribution the script says so."""
    assert any_run_sh.refuses(SPARK_HOME="")
    assert "SPARK_HOME" in any_run_sh.messages


def test_impersonation_runs_spark_as_the_kernels_user(any_run_sh: RunSh) -> None:
    """With impersonation on, and only then, everything runs by sudo as the user."""
    command = any_run_sh("--kernel-id", "k", EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME="alice")
    assert command[:6] == ["sudo", "PATH=" + any_run_sh.environment["PATH"], "-H", "-E", "-u", "alice"]
    assert command[6] == any_run_sh.environment["SPARK_HOME"] + "/bin/spark-submit"
    assert any_run_sh(EG_IMPERSONATION_ENABLED="False", KERNEL_USERNAME="alice")[0] == "spark-submit"


@pytest.mark.parametrize("user", ["#0", "-s", "a b", "a;b", "$(touch f)", "x\ny", "%root"])
def test_impersonation_refuses_what_is_no_user_name(any_run_sh: RunSh, user: str) -> None:
    """To sudo some of these are a uid or an option."""
    assert any_run_sh.refuses(EG_IMPERSONATION_ENABLED="True", KERNEL_USERNAME=user)


@pytest.mark.parametrize("name", ["scala_distributed", "spark_scala_yarn_client"])
def test_the_scala_launcher_gets_its_secret_on_standard_input(name: str, tmp_path: Path) -> None:
    """A JVM's environment would show the secret to cells; without a secret standard input is empty."""
    run_sh = RunSh(name, tmp_path)
    command = run_sh("--kernel-id", "k", EG_LAUNCH_SECRET="s3cret", __TOREE_OPTS__="--alternate-sigint USR2")
    record = Path(run_sh.environment["RECORD"])
    assert Path(f"{record}.stdin").read_text() == "s3cret\n"
    assert "s3cret" not in Path(f"{record}.env").read_text()
    assert command[-5:] == ["--alternate-sigint", "USR2", "--kernel-id", "k", "--launch-secret-on-stdin"]
    assert run_sh("--kernel-id", "k")[-1] == "k"
    assert Path(f"{record}.stdin").read_text() == ""


def test_toree_lists_default_to_what_its_installation_chose(tmp_path: Path) -> None:
    """``__TOREE_SPARK_OPTS__`` and ``__TOREE_OPTS__`` count where SPARK_OPTS and TOREE_OPTS are not given."""
    run_sh = RunSh("spark_scala_yarn_client", tmp_path)
    installed = {"__TOREE_SPARK_OPTS__": "--master yarn", "__TOREE_OPTS__": "--installed"}
    assert run_sh(**installed)[1:3] == ["--master", "yarn"]
    command = run_sh(**installed, SPARK_OPTS="--master local", TOREE_OPTS="--given")
    assert command[1:3] == ["--master", "local"]
    assert command[-1] == "--given"


@pytest.mark.parametrize("folder", sorted(path.name for path in KERNELSPECS.iterdir()))
def test_kernelspecs_are_complete(folder: str) -> None:
    """A kernelspec names a proxy class, gives its launcher all placeholders, and has a logo."""
    spec = json.loads((KERNELSPECS / folder / "kernel.json").read_text())
    assert {"display_name", "language", "argv", "metadata"} <= spec.keys()
    placeholders = {"{kernel_id}", "{public_key}", "{response_address}", "{port_range}"}
    assert placeholders <= set(spec["argv"])
    assert spec["metadata"]["process_proxy"]["class_name"].startswith("enterprise_gateway.services.processproxies.")
    assert (KERNELSPECS / folder / "logo-64x64.png").read_bytes().startswith(b"\x89PNG")
