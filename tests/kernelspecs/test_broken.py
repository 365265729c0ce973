"""Kernelspecs whose kernel.json cannot be used: each way in says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ExpectLog
from tests.support.gateway import running_gateway
from tests.support.kernelspecs import PYTHON_ARGV, write_kernelspec
from tests.support.launchers import eventually

CONFIG = {"EnterpriseGatewayApp": {"list_kernels": True, "unauthorized_users": []}}
GOOD = {"argv": list(PYTHON_ARGV), "display_name": "é", "language": "python"}


def write(content: bytes | object, name: str = "broken") -> Path:
    """Write bytes, or a value as JSON, to the kernel.json of a kernelspec."""
    file = write_kernelspec(name) / "kernel.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


BROKEN = {
    "syntax": (b'{\n "argv": ["x"]\n "env": {}\n}', "line 3, column 2 is not JSON (Expecting ',' delimiter)."),
    "empty": (b"", "line 1, column 1 is not JSON (Expecting value)."),
    "latin-1": (
        b'{"argv": ["x"],\n "display_name": "caf\xe9"}',
        "line 2 is not UTF-8; save the file in that encoding.",
    ),
    "utf-16": (json.dumps(GOOD).encode("utf-16"), "line 1 is not UTF-8; save the file in that encoding."),
    "deep": (b"[" * 200_000, "it is not JSON ("),
    "list": ([], "it must hold a JSON object."),
    "no-argv": ({"display_name": "x"}, "argv, the kernel's command, is missing or empty."),
    "empty-argv": ({**GOOD, "argv": []}, "argv, the kernel's command, is missing or empty."),
    "argv-text": ({**GOOD, "argv": "python"}, "argv must be a list of strings."),
    "argv-numbers": ({**GOOD, "argv": ["python", 1]}, "argv must be a list of strings."),
    "env-list": ({**GOOD, "env": ["A=1"]}, "env must be a JSON object."),
    "env-zero": ({**GOOD, "env": 0}, "env must be a JSON object."),
    "metadata-list": ({**GOOD, "metadata": []}, "metadata must be a JSON object."),
    "metadata-text": ({**GOOD, "metadata": "x"}, "metadata must be a JSON object."),
    "proxy-text": ({**GOOD, "metadata": {"process_proxy": "x.Y"}}, "metadata.process_proxy must be a JSON object."),
    "proxy-config": (
        {**GOOD, "metadata": {"process_proxy": {"class_name": "x.Y", "config": "a"}}},
        "metadata.process_proxy.config must be a JSON object.",
    ),
    "provisioner": (
        {**GOOD, "metadata": {"kernel_provisioner": 5}},
        "metadata.kernel_provisioner must be a JSON object.",
    ),
    "interrupt-mode": ({**GOOD, "interrupt_mode": "shout"}, "interrupt_mode"),
    "display-name": ({**GOOD, "display_name": 5}, "display_name"),
}


@pytest.mark.parametrize("cache", [True, False])
async def test_every_way_to_a_broken_kernelspec_names_file_and_reason(expect_log: ExpectLog, cache: bool) -> None:
    """Start, session and its own page are 500 with the sentence; the list has the others, and the log one warning."""
    files = {name: write(content, name) for name, (content, _) in BROKEN.items()}
    write_kernelspec("whole")
    config = {**CONFIG, "KernelSpecCache": {"cache_enabled": cache}}
    with expect_log(r"The kernelspec .* cannot be used|POST|GET") as logged:
        async with running_gateway(config=config) as gateway:
            for _ in range(2):
                listed = set((await gateway.call("/api/kernelspecs"))["kernelspecs"])
                assert {"whole", "python3"} <= listed
                assert not listed & set(BROKEN)
            for name, (_, reason) in BROKEN.items():
                session = {"path": "a", "type": "notebook", "kernel": {"name": name}}
                for answer in (
                    await gateway.call(f"/api/kernelspecs/{name}", status=500),
                    await gateway.call("/api/kernels", "POST", {"name": name}, status=500),
                    await gateway.call("/api/sessions", "POST", session, status=500),
                ):
                    assert answer["reason"] == "Internal Server Error"
                    assert answer["message"].startswith(f"The kernelspec {files[name]} cannot be used: ")
                    assert reason in answer["message"]
            assert await gateway.call("/api/kernels") == []
            await gateway.call("/api/kernelspecs")
    warnings = [record.getMessage() for record in logged if record.levelname == "WARNING"]
    assert sorted(text.split()[2] for text in warnings) == sorted(str(file) for file in files.values())
    assert all(record.exc_info is None for record in logged)


async def test_what_is_only_unusual_is_read() -> None:
    """A byte order mark, and null for env, metadata and display_name: the kernel starts, with its variables."""
    write(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "marked")
    write({**GOOD, "env": None, "metadata": None, "display_name": None}, "null")
    write({**GOOD, "metadata": {"process_proxy": None, "kernel_provisioner": None}}, "null-proxy")
    async with running_gateway(config=CONFIG) as gateway:
        for name in ("marked", "null", "null-proxy"):
            assert (await gateway.call(f"/api/kernelspecs/{name}"))["spec"]["env"] == {}
            kernel_id = await gateway.start_kernel(name)
            await gateway.call(f"/api/kernels/{kernel_id}", "DELETE", status=204)


async def test_a_kernelspec_that_was_mended_is_there_at_once(expect_log: ExpectLog) -> None:
    """The list has it after the file was written again, in place, and not any more after it was broken again."""
    with expect_log(r"is not JSON") as logged:
        file = write(b"{", "mended")
        async with running_gateway(config=CONFIG) as gateway:
            assert "mended" not in (await gateway.call("/api/kernelspecs"))["kernelspecs"]
            file.write_text(json.dumps({**GOOD, "argv": [sys.executable, "--version"]}))
            await eventually(lambda: gateway.app.kernel_spec_cache._stale)
            assert "mended" in (await gateway.call("/api/kernelspecs"))["kernelspecs"]
            file.write_text("{")
            await eventually(lambda: gateway.app.kernel_spec_cache._stale)
            assert "mended" not in (await gateway.call("/api/kernelspecs"))["kernelspecs"]
    assert len(logged) == 2
