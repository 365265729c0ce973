"""papermill and nbclient run notebooks on a gateway that wants a token, over TLS, through our kernel manager."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
import requests

from tests.support.certificates import Authority
from tests.support.processes import REPOSITORY, ServerProcess, gateway_process
from tests.support.tcpproxy import TcpProxy

TOKEN = "s3cret-t0ken"
# The environment that the documentation tells a scheduler to set, beside the address.
ENGINE = [sys.executable, "-m", "papermill", "--engine", "enterprise_gateway", "--no-progress-bar"]
PARAMETERS = "count = 1\nname = 'nobody'"


@contextmanager
def gateway_with_token(tmp_path: Path, *argv: str) -> Iterator[tuple[ServerProcess, dict[str, str]]]:
    """Run a gateway with a private authority's certificate; yields it and what its clients have in the environment."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    options = [f"certfile={certificate}", f"keyfile={key}", f"auth_token={TOKEN}", "list_kernels=True"]
    options = [f"--EnterpriseGatewayApp.{option}" for option in options]
    with gateway_process(tmp_path / "log", [*options, *argv]) as gateway:
        yield (
            gateway,
            {
                "JUPYTER_GATEWAY_URL": gateway.url,
                "JUPYTER_GATEWAY_AUTH_TOKEN": TOKEN,
                "JUPYTER_GATEWAY_CA_CERTS": authority.certificate,
            },
        )
        assert not kernels(gateway, authority.certificate)
    assert TOKEN not in gateway.output


def kernels(gateway: ServerProcess, authority: str) -> Any:
    """Return the gateway's kernels."""
    headers = {"Authorization": f"token {TOKEN}"}
    return requests.get(f"{gateway.url}/api/kernels", headers=headers, verify=authority, timeout=20).json()


def write(path: Path, *cells: str) -> Path:
    """Write a notebook whose first cell holds the parameters."""
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernelspec})
    book.cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *cells)]
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, path)
    return path


def papermill(book: Path, env: dict[str, str], *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run a notebook by papermill's command line; returns what it said and the file it wrote."""
    output = book.with_name("out.ipynb")
    command = [*ENGINE, str(book), str(output), *arguments]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=100, check=False)
    assert TOKEN not in done.stdout + done.stderr
    return done, output


def printed(path: Path) -> list[str]:
    """Return what each cell printed."""
    cells = nbformat.read(path, as_version=4).cells
    return ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in cells]


def test_papermill_runs_a_notebook_with_parameters(tmp_path: Path) -> None:
    """Every cell's output is complete and in order, and the kernel is gone afterwards."""
    many = [f"print({number})" for number in range(20)]
    book = write(tmp_path / "in.ipynb", "for i in range(count): print(name, i)", *many)
    with gateway_with_token(tmp_path) as (_, env):
        done, output = papermill(book, env, "-p", "count", "2000", "-p", "name", "ada")
        assert done.returncode == 0, done.stderr
    texts = printed(output)[-21:]
    assert texts[0] == "".join(f"ada {i}\n" for i in range(2000))
    assert texts[1:] == [f"{number}\n" for number in range(20)]


def test_papermill_runs_a_notebook_as_the_documentation_says_for_python(tmp_path: Path) -> None:
    """The documented lines, as they are, run it with their parameters, as the user that the environment names."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/users/pipelines.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "papermill.execute_notebook" in block]
    assert 'engine_name="enterprise_gateway"' in code
    write(tmp_path / "in.ipynb", "import os", "for i in range(count): print(os.environ['KERNEL_USERNAME'], i)")
    with gateway_with_token(tmp_path) as (gateway, env):
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", code],
            cwd=tmp_path,
            env={**os.environ, **env, "KERNEL_USERNAME": "alice"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Kernel started" in gateway.output
        assert TOKEN not in done.stdout + done.stderr
        for bad in ("never retrieved", "was destroyed", "ResourceWarning"):
            assert bad not in done.stderr
    assert printed(tmp_path / "out.ipynb")[-1] == "".join(f"alice {i}\n" for i in range(10))


def test_a_connection_cut_in_the_middle_of_a_cell_loses_nothing(tmp_path: Path) -> None:
    """The output is complete, and every line is there once."""
    book = write(tmp_path / "in.ipynb", "import time\nfor i in range(80): print(i, flush=True); time.sleep(0.05)")
    with gateway_with_token(tmp_path) as (gateway, env), TcpProxy(urlsplit(gateway.url).port or 0) as proxy:
        stop = threading.Event()

        def cut() -> None:
            while '"stream"' not in (out.read_text() if (out := tmp_path / "out.ipynb").exists() else ""):
                if stop.wait(0.2):
                    return
            for _ in range(2):
                proxy.cut()
                stop.wait(0.7)

        cutter = threading.Thread(target=cut)
        cutter.start()
        done, output = papermill(
            book, {**env, "JUPYTER_GATEWAY_URL": f"https://127.0.0.1:{proxy.port}"}, "--autosave-cell-every", "1"
        )
        stop.set()
        cutter.join()
        assert done.returncode == 0, done.stderr
        assert gateway.output.count("101 GET") >= 2, "the connection was never cut"
    assert printed(output)[-1] == "".join(f"{i}\n" for i in range(80))


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        pytest.param("1 / 0", "ZeroDivisionError", id="error"),
        pytest.param("input()", "StdinNotImplementedError", id="input"),
    ],
)
def test_a_failing_cell_ends_the_run(tmp_path: Path, cell: str, error: str) -> None:
    """The error is papermill's; the kernel is deleted all the same."""
    book = write(tmp_path / "in.ipynb", cell, "print('not reached')")
    with gateway_with_token(tmp_path) as (_, env):
        done, output = papermill(book, env)
        assert done.returncode == 1
        assert error in done.stderr
    assert printed(output)[-1] == ""


@pytest.mark.parametrize("autorestart", [True, False])
def test_a_kernel_that_dies_ends_the_run_within_seconds(tmp_path: Path, autorestart: bool) -> None:
    """Nobody waits for a reply that cannot come, whether or not the gateway starts the kernel again."""
    died = tmp_path / "died"
    book = write(tmp_path / "in.ipynb", f"import os, pathlib\npathlib.Path({str(died)!r}).touch()\nos._exit(1)")
    with gateway_with_token(tmp_path, f"--RemoteKernelManager.autorestart={autorestart}") as (_, env):
        done, _ = papermill(book, env)
        ended = time.time()
    # papermill's own code for a dead kernel, or a failed cell's where the gateway answered for the kernel
    assert done.returncode in {138, 1}
    assert "DeadKernelError" in done.stderr or "PapermillExecutionError" in done.stderr
    assert ended - died.stat().st_mtime < 30


def test_a_wrong_token_is_reported_in_one_sentence(tmp_path: Path) -> None:
    """The last line names the gateway and the cause."""
    book = write(tmp_path / "in.ipynb", "1")
    with gateway_with_token(tmp_path) as (gateway, env):
        done, _ = papermill(book, {**env, "JUPYTER_GATEWAY_AUTH_TOKEN": "wrong"})
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.endswith(f"gateway {gateway.url} answered 401 Unauthorized: check the token")


NBCLIENT = """
import asyncio, json, sys
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config
from enterprise_gateway.client.kernelmanager import GatewayKernelManager

options = json.loads(sys.argv[2])
book = nbformat.read(sys.argv[1], as_version=4)
config = Config({"GatewayKernelManager": options})
client = NotebookClient(book, kernel_manager_class=GatewayKernelManager, config=config, timeout=60)
if len(sys.argv) > 3:
    async def main():
        try:
            await asyncio.wait_for(client.async_execute(), float(sys.argv[3]))
        except (asyncio.TimeoutError, DeadKernelError):  # what nbclient makes of a cancellation in a cell
            print("cancelled")
    asyncio.run(main())
else:
    client.execute()
    nbformat.write(book, sys.argv[1])
"""


def nbclient(book: Path, env: dict[str, str], options: dict[str, Any], *arguments: str) -> str:
    """Run a notebook in place by nbclient; returns what the program printed."""
    command = [
        sys.executable,
        "-W",
        "error::ResourceWarning",
        "-c",
        NBCLIENT,
        str(book),
        json.dumps(options),
        *arguments,
    ]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for bad in ("never retrieved", "was destroyed", "ResourceWarning"):
        assert bad not in done.stderr
    return done.stdout


def test_nbclient_attaches_to_a_kernel_and_leaves_it(tmp_path: Path) -> None:
    """The notebook sees the kernel's variables; the kernel lives on."""
    first, second = write(tmp_path / "1.ipynb", "secret = 41"), write(tmp_path / "2.ipynb", "print(secret + 1)")
    with gateway_with_token(tmp_path) as (gateway, env):
        nbclient(first, env, {"keep_kernel": True})
        (kernel,) = kernels(gateway, env["JUPYTER_GATEWAY_CA_CERTS"])
        nbclient(second, {**env, "JUPYTER_GATEWAY_KERNEL_ID": kernel["id"]}, {})
        assert printed(second)[-1] == "42\n"
        assert [model["id"] for model in kernels(gateway, env["JUPYTER_GATEWAY_CA_CERTS"])] == [kernel["id"]]
        nbclient(second, env, {"kernel_id": kernel["id"], "keep_kernel": False})


def test_a_cancelled_run_leaves_no_kernel(tmp_path: Path) -> None:
    """The kernel is deleted before the cancelled program ends."""
    book = write(tmp_path / "in.ipynb", "import time; time.sleep(60)")
    with gateway_with_token(tmp_path) as (_, env):
        start = time.monotonic()
        assert nbclient(book, env, {}, "6").strip() == "cancelled"
        assert time.monotonic() - start < 40
