"""Kernels of our back ends with no gateway running: nbclient with RemoteKernelManager as its kernel manager."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from enterprise_gateway.core.errors import HostUnreachableError
from enterprise_gateway.services.kernels.remotemanager import RemoteKernelManager
from tests.clusters.ssh_hosts import HostLab
from tests.conftest import ExpectLog
from tests.contract.backends import LAUNCHER, LAUNCHER_OPTIONS, PROXIES
from tests.contract.test_contract import nothing_left
from tests.support.kernelspecs import write_kernelspec
from tests.support.loops import crowded_machine

CELLS = ["import os, socket; total = sum(range(1000))", "print(os.environ['KERNEL_ID'])", "total", "print(os.getpid())"]
WHERE = "print(os.environ.get('SSH_CONNECTION', '').split()[2:3])"


@pytest.fixture
def distributed(monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernelspec of DistributedProcessProxy that names no hosts."""
    monkeypatch.setenv("EG_RESPONSE_IP", "127.0.0.1")
    monkeypatch.setenv("EG_RESPONSE_PORT", "0")
    stanza = {"class_name": f"{PROXIES}.distributed.DistributedProcessProxy", "config": {"payload_version": 2}}
    argv = [sys.executable, str(LAUNCHER), *LAUNCHER_OPTIONS]
    write_kernelspec("distributed", argv=argv, metadata={"process_proxy": stanza})
    return "distributed"


def notebook(*more: str) -> Any:
    """Return a notebook with some cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (*CELLS, *more)])


def client(book: Any, kernel_name: str, hosts: list[str] | None = None, **options: Any) -> NotebookClient:
    """Return nbclient's client, set up as its documentation shows for another kernel manager."""
    options_of_kernel = {"shutdown_wait_time": 4.0, **({"remote_hosts": hosts} if hosts else {})}
    config = Config({"RemoteKernelManager": options_of_kernel})
    return NotebookClient(
        book, kernel_name=kernel_name, kernel_manager_class=RemoteKernelManager, timeout=60, config=config, **options
    )


def text_of(cell: Any) -> str:
    """Return what a cell has shown."""
    return "".join(output.get("text", "") or output["data"]["text/plain"] for output in cell.outputs).strip()


async def executed(runner: NotebookClient) -> Any:
    """Execute a notebook; everything that its kernel was made of must be gone then."""
    with crowded_machine(2, "nbclient terminates its ZeroMQ context on the loop"):
        book = await runner.async_execute()
    kernel_id = text_of(book.cells[1])
    assert text_of(book.cells[2]) == "499500"
    assert runner.km is None or not runner.km.has_kernel
    await nothing_left(kernel_id)
    assert not list(Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("kernel-*"))
    return book


async def test_a_notebook_runs_on_a_local_kernel() -> None:
    """Without a process proxy in the kernelspec it is LocalProcessProxy that starts the kernel."""
    await executed(client(notebook(), "python3"))


async def test_a_notebook_runs_on_hosts_from_the_configuration(
    distributed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """c.RemoteKernelManager.remote_hosts says where; the response server and all sockets end with the run."""
    await executed(client(notebook(), distributed, ["127.0.0.1"]))
    assert "not recognized" not in caplog.text


async def test_a_notebook_runs_on_hosts_from_the_environment(distributed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EG_REMOTE_HOSTS says where when the configuration does not."""
    monkeypatch.setenv("EG_REMOTE_HOSTS", "127.0.0.1")
    await executed(client(notebook(), distributed))


async def test_several_notebooks_run_at_once(distributed: str) -> None:
    """Each has its own kernel, and none is in another's way."""
    books = await asyncio.gather(*(executed(client(notebook(), distributed, ["127.0.0.1"])) for _ in range(3)))
    assert len({text_of(book.cells[1]) for book in books}) == 3


async def test_a_failing_cell_ends_the_run_and_its_kernel(distributed: str) -> None:
    """The error is raised as nbclient does, and the kernel is stopped."""
    book = notebook("1 / 0", "print('not reached')")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        await client(book, distributed, ["127.0.0.1"]).async_execute()
    await nothing_left(text_of(book.cells[1]))


async def test_a_start_that_fails_leaves_nothing(distributed: str, expect_log: ExpectLog) -> None:
    """A host that cannot be reached is named in the error; the response server is closed."""
    book = notebook()
    error = pytest.raises(HostUnreachableError, match=r"192\.0\.2\.1|no-such-host")
    with expect_log("cannot be started on no-such-host.invalid"), error:
        await client(book, distributed, ["no-such-host.invalid"]).async_execute()


async def test_a_kernel_is_interrupted_and_restarted(distributed: str) -> None:
    """The manager's own methods work as jupyter_client's do."""
    manager = RemoteKernelManager(
        kernel_name=distributed, config=Config({"RemoteKernelManager": {"remote_hosts": ["127.0.0.1"]}})
    )
    manager.client_class = "jupyter_client.asynchronous.AsyncKernelClient"
    await manager.start_kernel()
    kernel_client = manager.client()
    kernel_client.start_channels()
    try:
        await kernel_client.wait_for_ready(timeout=30)
        loop = asyncio.create_task(kernel_client.execute_interactive("while True: pass", timeout=30))
        await asyncio.sleep(1)
        await manager.interrupt_kernel()
        assert (await loop)["content"]["ename"] == "KeyboardInterrupt"
        assert await manager.is_alive()
        kernel_client.stop_channels()
        await manager.restart_kernel(now=True)
        kernel_client = manager.client()
        kernel_client.start_channels()
        await kernel_client.wait_for_ready(timeout=30)
        reply = await kernel_client.execute_interactive("1 + 1", timeout=30, output_hook=lambda _message: None)
        assert reply["content"]["status"] == "ok"
    finally:
        kernel_client.stop_channels()
        await manager.shutdown_kernel()
    assert not await manager.is_alive()
    await nothing_left(manager.kernel_id)


SCRIPT = """
import sys, threading
import nbformat, psutil
from nbclient import NotebookClient
from enterprise_gateway.services.kernels.remotemanager import RemoteKernelManager

book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, kernel_name="distributed", kernel_manager_class=RemoteKernelManager, timeout=60).execute()
print("".join(output.get("text", "") for output in book.cells[1].outputs).strip())
lasting = [t.name for t in threading.enumerate() if not t.name.startswith(("MainThread", "eg-offload"))]
listening = [c for c in psutil.Process().net_connections() if c.status == "LISTEN"]
assert not lasting and not listening and not psutil.Process().children(), (lasting, listening)
"""


def test_a_program_without_a_loop_uses_it_too(
    distributed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NotebookClient.execute works as in any script; no thread, listener or process stays while the script goes on."""
    monkeypatch.setenv("EG_REMOTE_HOSTS", "127.0.0.1")
    path = tmp_path / "book.ipynb"
    nbformat.write(notebook(), path)
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", SCRIPT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "never retrieved" not in done.stderr
    assert "Traceback" not in done.stderr
    asyncio.run(nothing_left(done.stdout.strip()))


@pytest.mark.ssh
async def test_a_notebook_runs_on_an_ssh_host(distributed: str, lab: HostLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is on the host that the configuration names, and neither it nor the connection stays."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    host = lab.hosts[0]
    book = await executed(client(notebook(WHERE), distributed, [host.address]))
    assert book.cells[4].outputs
    assert not await asyncio.to_thread(host.processes, "launch_ipykernel")


@pytest.mark.ssh
async def test_the_next_host_is_taken_when_one_does_not_answer(
    distributed: str, lab: HostLab, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """A host that is off does not keep a notebook from running on another."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    with expect_log(f"cannot be started on {lab.absent_address}"):
        await executed(client(notebook(), distributed, [lab.absent_address, lab.hosts[1].address]))
