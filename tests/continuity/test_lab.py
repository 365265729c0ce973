"""A person works in JupyterLab while the gateway is rolled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.conftest import OpenLab, open_lab
from tests.support.processes import gateway_process

from .rolling import STANDALONE, free_port

__all__ = ["open_lab"]  # the fixture

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def outlasting() -> Iterator[ExitStack]:
    """Return a stack for the second gateway, which JupyterLab needs until it has ended itself."""
    with ExitStack() as stack:
        yield stack


def test_a_long_cell_finishes_while_the_gateway_is_rolled(
    tmp_path: Path, outlasting: ExitStack, open_lab: OpenLab
) -> None:
    """The cell goes on in its kernel, its later output and its end appear, the gap is shown, and work goes on."""
    port = free_port()
    argv = [*STANDALONE, "--port_retries=0"]
    with gateway_process(tmp_path / "gateway-1.log", argv, port=port) as first:
        lab = open_lab(first.url)
        marker = tmp_path / "go-on"
        lab.open_notebook(
            f"import pathlib, time\nx = 42\nprint('before')\n"
            f"while not pathlib.Path({str(marker)!r}).exists():\n    time.sleep(0.1)\nprint('after')",
            "print('still', x)",
        )
        lab.command("notebook:run-cell")
        lab.wait_text(0, "before")
    assert first.process.returncode == 0
    ends_kernels = "--EnterpriseGatewayApp.keep_kernels_on_stop=False"
    second = gateway_process(tmp_path / "gateway-2.log", [*argv, ends_kernels], port=port)
    outlasting.enter_context(second)
    lab.wait(lambda: "101 GET" in second.output, "the websocket is back", 60)
    marker.touch()
    lab.wait_text(0, "after", 40)
    lab.wait(lambda: lab.kernel_status() == "idle", "idle", 40)
    assert "The gateway was restarted while this cell was running" in lab.text(0)
    lab.wait(lambda: lab.prompt(0) == "[1]:", "the cell has ended")
    lab.screenshot("rolled")
    lab.browser.execute_script("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    lab.command("notebook:run-cell")
    lab.wait_text(1, "still 42")
    lab.screenshot("rolled-and-on")
