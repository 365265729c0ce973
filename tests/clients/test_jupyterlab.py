"""A person works in JupyterLab 4 on kernels of the gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.processes import ServerProcess, gateway_process
from tests.support.tcpproxy import TcpProxy

from .conftest import OpenLab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[ServerProcess]:
    """Our gateway as a program."""
    with gateway_process(tmp_path / "gateway.log") as process:
        yield process
    assert process.process.returncode == 0
    assert "Traceback" not in process.output


@pytest.fixture
def line(gateway: ServerProcess) -> Iterator[TcpProxy]:
    """The line between Jupyter Server and the gateway, for cutting; it outlives JupyterLab, which stops its kernels."""
    with TcpProxy(urlsplit(gateway.url).port or 0) as proxy:
        yield proxy


def test_cells_plots_and_widgets(gateway: ServerProcess, open_lab: OpenLab) -> None:
    """Cells run in order; text, tables, a plot and an interactive widget appear, and the widget's change comes back."""
    lab = open_lab(gateway.url)
    lab.open_notebook(
        "x = 6 * 7\nprint('x is', x)",
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 2))\nplt.plot([1, 3, 2])\nplt.show()",
        "import ipywidgets\nslider = ipywidgets.IntSlider(value=3, description='pick')\nslider",
        "seen = []\nslider.observe(lambda change: seen.append(change['new']), 'value')\nprint('observing')",
        "print('seen', seen)",
    )
    lab.run_all()
    lab.wait_text(0, "x is 42")
    lab.wait(lambda: any("image/png" in output.get("data", {}) for output in lab.outputs(1)), "a plot", 90)
    lab.wait_text(3, "observing", 60)
    handle = "//*[contains(@class, 'widget-slider')]//*[contains(@class, 'noUi-handle')]"
    lab.wait(lambda: bool(lab.browser.find_elements(By.XPATH, handle)), "the slider")
    picture = lab.browser.find_element(By.CSS_SELECTOR, ".jp-RenderedImage img")
    assert int(picture.get_property("naturalWidth")) > 100  # type: ignore[call-overload]
    lab.browser.find_element(By.XPATH, handle).send_keys(Keys.ARROW_RIGHT)
    lab.screenshot("cells-plots-widgets")
    lab.browser.execute_script("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 4")
    lab.wait(lambda: lab.kernel_status() == "idle", "idle")
    lab.command("notebook:run-cell")
    lab.wait_text(4, "seen [4]")


def test_an_endless_loop_is_interrupted_and_the_kernel_restarted(gateway: ServerProcess, open_lab: OpenLab) -> None:
    """The stop button ends the loop within seconds; the restart forgets variables and is not called a death."""
    lab = open_lab(gateway.url)
    lab.open_notebook("y = 1\nwhile True: pass", "print('y' in globals())")
    lab.command("notebook:run-cell")
    lab.wait(lambda: lab.kernel_status() == "busy", "busy")
    time.sleep(1)
    lab.command("notebook:interrupt-kernel")
    lab.wait_text(0, "KeyboardInterrupt", 10)
    lab.wait(lambda: lab.kernel_status() == "idle", "idle", 10)
    lab.screenshot("interrupted")
    lab.command("notebook:restart-kernel")
    lab.click_button("Restart")
    lab.wait(lambda: "Kernel restarted" in gateway.output, "the restart")
    lab.wait(lambda: lab.kernel_status() == "idle", "idle")
    lab.browser.execute_script("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    lab.command("notebook:run-cell")
    lab.wait_text(1, "False")
    lab.screenshot("restarted")
    assert lab.dialogue() == ""  # it would stay until somebody presses its button


def test_a_death_is_shown_and_the_notebook_goes_on(gateway: ServerProcess, open_lab: OpenLab) -> None:
    """The dialogue says that the kernel has died, the cell has the reason and ends, and the next one runs."""
    lab = open_lab(gateway.url)
    # ZeroMQ sends in a thread of its own, which ends with the process.
    lab.open_notebook("import os, time\nprint('before')\ntime.sleep(1)\nos._exit(3)", "print('os' in globals())")
    lab.command("notebook:run-cell")
    lab.wait(lambda: "appears to have died" in lab.dialogue(), "the dialogue")
    lab.screenshot("died")
    lab.click_button("Ok")
    lab.wait(lambda: lab.kernel_status() == "idle", "idle")
    assert "before" in lab.text(0)
    assert "exit code 3" in lab.text(0)
    assert "[*]" not in lab.prompt(0)
    lab.browser.execute_script("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    lab.command("notebook:run-cell")
    lab.wait_text(1, "False")


def test_input_in_the_notebook(gateway: ServerProcess, open_lab: OpenLab) -> None:
    """A cell that asks shows a box, and what is typed reaches the code."""
    lab = open_lab(gateway.url)
    lab.open_notebook("name = input('Who? ')\nprint('Hello', name)")
    lab.command("notebook:run-cell")
    box = ".jp-Stdin-input"
    lab.wait(lambda: bool(lab.browser.find_elements(By.CSS_SELECTOR, box)), "the input box")
    field = lab.browser.find_element(By.CSS_SELECTOR, box)
    ActionChains(lab.browser).click(field).send_keys("Ada").send_keys(Keys.ENTER).perform()
    lab.wait_text(0, "Hello Ada")
    lab.screenshot("input")


def test_work_goes_on_after_the_line_to_the_gateway_was_cut(line: TcpProxy, open_lab: OpenLab) -> None:
    """A cut line comes back by itself: output made meanwhile arrives, and variables are still there."""
    lab = open_lab(f"http://127.0.0.1:{line.port}")
    lab.open_notebook("import time\nz = 'kept'\nprint('before')\ntime.sleep(6)\nprint('after')", "print(z, 'and well')")
    lab.command("notebook:run-cell")
    lab.wait_text(0, "before")
    line.cut()
    lab.wait_text(0, "after", 40)
    lab.wait(lambda: lab.kernel_status() == "idle", "idle", 40)
    assert lab.text(0) == "before\nafter\n"
    lab.screenshot("recovered")
    lab.browser.execute_script("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    lab.command("notebook:run-cell")
    lab.wait_text(1, "kept and well")
