"""nbclient executes a notebook on a kernel of the gateway, as papermill and schedulers do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.support.processes import gateway_process

CELLS = [
    "import os, sys\nprint('kernel', os.environ['KERNEL_USERNAME'])",
    "total = sum(range(1000))\ntotal",
    "from IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'))\nprint('warned', file=sys.stderr)",
    "for i in range(2000): print('line', i)",
]


SCRIPT = """
import sys
import nbformat
from jupyter_server.gateway.managers import GatewayKernelManager
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
try:
    NotebookClient(book, kernel_manager_class=GatewayKernelManager, timeout=60).execute()
finally:
    nbformat.write(book, sys.argv[1])
"""


def execute(notebook: Path, gateway_url: str) -> subprocess.CompletedProcess[str]:
    """Run a notebook in place, on the gateway that Jupyter Server's environment variable names."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(notebook)],
        env={**os.environ, "JUPYTER_GATEWAY_URL": gateway_url, "KERNEL_USERNAME": "ada"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook on disk."""
    path = tmp_path / "book.ipynb"
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernelspec})
    book.cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(book, path)
    return path


def test_a_notebook_is_executed_and_saved(tmp_path: Path, notebook: Path) -> None:
    """Every cell has its outputs, the long one complete and in order, and the kernel is gone afterwards."""
    with gateway_process(tmp_path / "log") as gateway:
        done = execute(notebook, gateway.url)
        assert done.returncode == 0, done.stderr + gateway.output
        assert gateway.output.count("Kernel started") == 1
    cells = nbformat.read(notebook, as_version=4).cells
    assert cells[0].outputs[0].text == "kernel ada\n"
    assert cells[1].outputs[0].data["text/plain"] == "499500"
    kinds = {output.output_type for output in cells[2].outputs}
    assert kinds == {"display_data", "stream"}
    assert "".join(output.text for output in cells[3].outputs) == "".join(f"line {i}\n" for i in range(2000))


def test_an_error_in_a_cell_ends_the_run(tmp_path: Path, notebook: Path) -> None:
    """The error is in the notebook's output and in the exit code."""
    book = nbformat.read(notebook, as_version=4)
    book.cells.insert(1, nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(book, notebook)
    with gateway_process(tmp_path / "log") as gateway:
        done = execute(notebook, gateway.url)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("autorestart", [True, False])
def test_a_cell_that_ends_the_kernel_ends_the_run(tmp_path: Path, notebook: Path, autorestart: bool) -> None:
    """The run fails at once, not by a time-out, and says why, whether or not the gateway restarts the kernel."""
    book = nbformat.read(notebook, as_version=4)
    book.cells[1:] = [nbformat.v4.new_code_cell("import os\nos._exit(1)"), nbformat.v4.new_code_cell("print('on')")]
    nbformat.write(book, notebook)
    with gateway_process(tmp_path / "log", [f"--RemoteKernelManager.autorestart={autorestart}"]) as gateway:
        done = execute(notebook, gateway.url)
    assert done.returncode != 0
    assert "KernelDied: The kernel died before it replied to this request: its process ended with exit code 1." in (
        done.stderr
    )
    cells = nbformat.read(notebook, as_version=4).cells
    assert cells[0].outputs[0].text == "kernel ada\n"
    assert cells[2].outputs == []
