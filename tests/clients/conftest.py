"""JupyterLab 4 in headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.processes import jupyter_server_process
from tests.support.requirements import find, found, skip_without

from .lab import Lab, chromium

OpenLab = Callable[[str], Lab]


@pytest.fixture
def open_lab(tmp_path: Path) -> Iterator[OpenLab]:
    """Return a function that starts JupyterLab behind a gateway's URL and opens it in a browser of its own."""
    skip_without("browser")
    binary = find("chromium") or find("chromium-browser") or found("google-chrome")
    no_news(Path(os.environ["JUPYTER_CONFIG_DIR"]))
    work = tmp_path / "work"
    work.mkdir()
    with ExitStack() as stack:

        def start(gateway_url: str) -> Lab:
            argv = [
                f"--gateway-url={gateway_url}",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                "--LabApp.expose_app_in_browser=True",
            ]
            server = jupyter_server_process(
                tmp_path / "lab.log", argv, root=work, program="jupyterlab", env={"KERNEL_USERNAME": "ada"}
            )
            stack.enter_context(server)
            browser = stack.enter_context(chromium(binary, found("chromedriver"), tmp_path / "chromium"))
            return Lab(server, browser, work, Path(os.environ.get("TEST_SCREENSHOTS", tmp_path)))

        yield start


def no_news(config: Path) -> None:
    """Answer the question whether JupyterLab may fetch its news."""
    settings = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
