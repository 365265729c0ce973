"""The OpenAPI document is complete and correct."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from tornado.routing import PathMatches

from enterprise_gateway.services.api import handlers
from tests.support.gateway import running_gateway
from tests.support.kernelspecs import write_kernelspec
from tests.support.processes import gateway_process

DOCUMENT = yaml.safe_load((Path(handlers.__file__).parent / "swagger.yaml").read_text())
# What a schema cannot say: which generated bodies are refused, and that a 204 has no content type.
LEFT_OUT = "negative_data_rejection,positive_data_acceptance,content_type_conformance"


def test_the_yaml_and_json_documents_agree() -> None:
    """The YAML and the JSON document say the same."""
    assert json.loads((Path(handlers.__file__).parent / "swagger.json").read_text()) == DOCUMENT


async def test_every_route_and_verb_is_described() -> None:
    """Each route of the application is a path of the document, with exactly the verbs it implements."""
    described = {
        re.sub(r"\{\w+\}", "*", path): {verb.upper() for verb in item if verb != "parameters"}
        for path, item in DOCUMENT["paths"].items()
    }
    async with running_gateway() as gateway:
        routed = {}
        for rule in gateway.app.web_app.wildcard_router.rules:
            assert isinstance(rule.matcher, PathMatches)
            pattern = re.sub(
                r"\((?:[^()]|\([^()]*\))*\)", "*", rule.matcher.regex.pattern.rstrip("$").replace("\\", "")
            )
            routed[pattern] = _verbs(rule.target)
    for action in ("restart", "interrupt"):
        routed[f"/api/kernels/*/{action}"] = routed["/api/kernels/*/*"]
    for form in ("json", "yaml"):
        routed[f"/api/swagger.{form}"] = routed["/api/swagger.*"]
    for pattern in ("/api/kernels/*/*", "/api/swagger.*", "/.*"):
        del routed[pattern]
    assert routed == described


def _verbs(handler: type) -> set[str]:
    return {verb.upper() for verb in ("get", "post", "put", "patch", "delete") if _is_implemented(handler, verb)}


def _is_implemented(handler: type, verb: str) -> bool:
    return getattr(handler, verb).__qualname__ != "RequestHandler._unimplemented_method"


def test_no_generated_request_breaks_the_gateway(tmp_path: Path) -> None:
    """A fuzzer driven by the document sees no 5xx, no undocumented answer, and no way around the token."""
    write_kernelspec("sleepy", argv=["sleep", "1000"])
    options = [
        "--EnterpriseGatewayApp.auth_token=right",
        "--EnterpriseGatewayApp.list_kernels=True",
        "--EnterpriseGatewayApp.max_kernels=5",
        "--EnterpriseGatewayApp.default_kernel_name=sleepy",
        "--RemoteKernelManager.shutdown_wait_time=0.2",
    ]
    with gateway_process(tmp_path / "log", options, env={"EG_UNAUTHORIZED_USERS": ""}) as gateway:
        schemathesis = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/api/swagger.json"]
        limits = ["--max-examples=10", "--phases=coverage,fuzzing", "--max-time=40", "--warnings=off"]
        checks = ["--checks=all", f"--exclude-checks={LEFT_OUT}", "--header=Authorization: token right"]
        done = subprocess.run(
            [*schemathesis, *limits, *checks], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        assert "Unexpected failure" not in gateway.output
