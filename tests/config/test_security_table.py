"""What the security page says is shown by a test is."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "operators" / "config-security.md"


def test_every_test_that_the_security_page_names_exists() -> None:
    """Files, and the functions in them."""
    table = PAGE.read_text().partition("## Attacks and defences")[2]
    rows = [line.split("|")[4] for line in table.splitlines() if line.startswith("|") and "`" in line.split("|")[4]][1:]
    assert len(rows) > 30
    for row in rows:
        file = ""
        for name in re.findall("`([^`]+)`", row):
            file, _, function = (file + name if name.startswith("::") else name).partition("::")
            text = (TESTS / file).read_text()
            assert not function or re.search(rf"^(async )?def {function}\(", text, re.MULTILINE), f"{file}::{function}"
