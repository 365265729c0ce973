"""What a person does in JupyterLab, done through a browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.support.processes import ServerProcess

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-breakpad", "--disable-crash-reporter", "--window-size=1300,1000"),
)


@contextmanager
def chromium(binary: str, driver: str, profile: Path) -> Iterator[webdriver.Chrome]:
    """Run a browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    service = Service(driver)
    browser = webdriver.Chrome(service=service, options=options)
    try:
        yield browser
    finally:
        browser.quit()


class Lab:
    """One JupyterLab in one browser, with one notebook open."""

    def __init__(self, server: ServerProcess, browser: webdriver.Chrome, work: Path, screenshots: Path) -> None:
        self.server = server
        self.browser = browser
        self._work = work
        self._screenshots = screenshots

    def open_notebook(self, *sources: str) -> None:
        """Write a notebook of these code cells, open it, and wait for its kernel."""
        kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(metadata={"kernelspec": kernelspec})
        book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(book, self._work / "book.ipynb")
        self.browser.get(f"{self.server.url}/lab/tree/book.ipynb?reset")
        self.wait(lambda: self.kernel_status() == "idle", "the kernel is idle", 90)

    def run_all(self) -> None:
        """Run all cells; returns at once."""
        self.command("runmenu:run-all")

    def command(self, name: str) -> None:
        """Do what a menu entry does; returns at once."""
        self.browser.execute_script(f"window.jupyterapp.commands.execute({name!r}).catch(e => console.error(e))")

    def click_button(self, label: str) -> None:
        """Press the button of a dialogue."""
        path = f"//*[contains(@class, 'jp-Dialog')]//button[contains(., '{label}')]"
        self.wait(lambda: bool(self.browser.find_elements(By.XPATH, path)), f"a button {label}")
        self.browser.find_element(By.XPATH, path).click()

    def dialogue(self) -> str:
        """Return the text of the dialogue that is open, empty when there is none."""
        return " ".join(dialogue.text for dialogue in self.browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog"))

    def kernel_status(self) -> str | None:
        """Return the kernel's status as JupyterLab knows it; None while it knows none."""
        return self._ask("panel.context.sessionContext.session?.kernel?.status")

    def connection_status(self) -> str | None:
        """Return the state of JupyterLab's own websocket."""
        return self._ask("panel.context.sessionContext.session?.kernel?.connectionStatus")

    def outputs(self, cell: int) -> list[dict[str, Any]]:
        """Return the outputs of a cell, as they would be saved."""
        return self._ask(f"panel.content.widgets[{cell}].model.outputs.toJSON()") or []

    def text(self, cell: int) -> str:
        """Return the printed text of a cell, and the names of its errors."""
        found = []
        for output in self.outputs(cell):
            text = output.get("text") or output.get("data", {}).get("text/plain") or output.get("ename") or ""
            found.append("".join(text))
        return "".join(found)

    def prompt(self, cell: int) -> str:
        """Return what stands before a cell: ``[*]:`` while it runs, then its number."""
        try:
            cells = self.browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell")
            return cells[cell].find_element(By.CSS_SELECTOR, ".jp-InputPrompt").text
        except (IndexError, NoSuchElementException, StaleElementReferenceException):
            return ""

    def shown_text(self, cell: int) -> str:
        """Return what is on the page below a cell."""
        try:
            cells = self.browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell")
            return cells[cell].find_element(By.CSS_SELECTOR, ".jp-Cell-outputArea").text
        except (IndexError, NoSuchElementException, StaleElementReferenceException):
            return ""

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
        """Wait until ``condition`` holds; a screenshot tells why it does not."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                self.screenshot("failed")
                raise AssertionError(f"{what}: not within {timeout} s; see {self._screenshots}\n{self.server.output}")
            time.sleep(0.1)

    def wait_text(self, cell: int, text: str, timeout: float = 30) -> None:
        """Wait until a cell's output holds ``text``, in the model and on the page."""
        self.wait(lambda: text in self.text(cell), f"cell {cell} has {text!r}", timeout)
        self.wait(lambda: text in self.shown_text(cell), f"cell {cell} shows {text!r}")

    def screenshot(self, name: str) -> None:
        """Keep a picture of the page."""
        self.browser.save_screenshot(str(self._screenshots / f"{name}.png"))

    def _ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression about the notebook panel; None while there is no panel."""
        script = f"const panel = window.jupyterapp?.shell?.currentWidget; return panel?.context ? ({expression}) : null"
        try:
            return self.browser.execute_script(script)
        except JavascriptException:
            return None
