"""The program: command line, start, signals, ports."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

from enterprise_gateway import enterprisegatewayapp
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp, candidate_ports
from tests.support.processes import REPOSITORY, gateway_process

COMMAND = [sys.executable, "-m", "enterprise_gateway"]


def run(*argv, env=None, timeout=60):
    """Run the program to its end and return it, with what it wrote."""
    return subprocess.run(
        [*COMMAND, *argv],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def ask(url, method="GET", path="/api", body=None):
    """Send one request and return status and document."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None


def test_help_names_aliases_and_environment():
    """--help-all shows aliases, options of all classes, and the variables behind them."""
    result = run("--help-all")
    assert result.returncode == 0, result.stderr
    for alias in ("--ip", "--port", "--port_retries", "--keyfile", "--certfile", "--client-ca", "--ssl_version"):
        assert f"{alias}=" in result.stdout
    for option in (
        "EnterpriseGatewayApp.max_kernels",
        "KernelSpecCache.cache_enabled",
        "FileKernelSessionManager.persistence_root",
        "WebhookKernelSessionManager.webhook_url",
        "RemoteMappingKernelManager.cull_idle_timeout",
    ):
        assert f"--{option}=" in result.stdout
    assert "EG_MAX_KERNELS" in result.stdout


def test_generate_config_writes_a_file_that_loads(clean_environment):
    """--generate-config writes every option as a comment; the file can be loaded and shows in --show-config-json."""
    assert run("--generate-config").returncode == 0
    file = clean_environment / "config" / "jupyter_enterprise_gateway_config.py"
    text = file.read_text()
    assert "# c.KernelSpecCache.cache_enabled = True" in text
    option = "c.EnterpriseGatewayApp.max_kernels"
    assert f"# {option} = None" in text
    file.write_text(text.replace(f"# {option} = None", f"{option} = 7"))
    shown = run("--show-config-json", "--port=1234")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["EnterpriseGatewayApp"] == {"max_kernels": 7, "port": 1234}
    assert ".max_kernels = 7" in run("--show-config").stdout


def test_the_version_is_told():
    """--version prints the version and nothing else."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        ([], {"EG_PROHIBITED_UIDS": "0,x7"}, "EG_PROHIBITED_UIDS='0,x7': 'x7' is not a valid integer"),
        ([], {"EG_PORT": "http"}, "EG_PORT='http': expected a whole number"),
        (["--EnterpriseGatewayApp.load_balancing_algorithm=dice"], {}, "must be one of round-robin, least-connection"),
        (["--port=many"], {}, "port"),
        (["--certfile=/nonexistent.pem"], {}, "/nonexistent.pem"),
        (["--ip=192.0.2.1"], {}, "cannot listen on 192.0.2.1"),
    ],
)
def test_unusable_settings_end_the_start_with_one_sentence(argv, env, message):
    """The program exits with 1, says what is wrong, and shows no traceback."""
    result = run(*argv, env=env)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_first_port_is_tried_first_then_its_neighbours():
    """The candidates are the port, the five that follow it, then random ones nearby, without leaving the range."""
    assert list(candidate_ports(9000, 1)) == [9000]
    ports = list(candidate_ports(9000, 51))
    assert ports[:6] == [9000, 9001, 9002, 9003, 9004, 9005]
    assert len(ports) == 51
    assert all(9000 - 102 <= port <= 9000 + 102 for port in ports)
    assert all(0 < port < 65536 for port in candidate_ports(65535, 51))


def occupied_pair(stack):
    """Occupy two neighbouring ports and return the first."""
    while True:
        first = stack.enter_context(closing(socket.socket()))
        first.bind(("127.0.0.1", 0))
        first.listen()
        port = first.getsockname()[1]
        second = stack.enter_context(closing(socket.socket()))
        try:
            second.bind(("127.0.0.1", port + 1))
        except OSError:
            continue
        second.listen()
        return port


def test_an_occupied_port_is_skipped(tmp_path):
    """With port and neighbour taken the gateway serves on a later one, and says which."""
    with ExitStack() as stack:
        port = occupied_pair(stack)
        gateway = stack.enter_context(gateway_process(tmp_path / "log", port=port))
        assert urlsplit(gateway.url).port not in {port, port + 1}
        assert f"The port {port} is already in use" in gateway.output
        assert ask(gateway.url)[0] == 200


def test_without_retries_an_occupied_port_ends_the_start():
    """port_retries=0 tries one port only; then the program exits with 1 and says why."""
    with ExitStack() as stack:
        port = occupied_pair(stack)
        result = run(f"--port={port}", "--port_retries=0")
    assert result.returncode == 1
    assert "no available port could be found" in result.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_gracefully(tmp_path, signum):
    """SIGTERM and SIGINT end kernels and gateway; SIGHUP does nothing; the exit code is 0."""
    with gateway_process(tmp_path / "log", env={"EG_UNAUTHORIZED_USERS": ""}) as gateway:
        status, kernel = ask(gateway.url, "POST", "/api/kernels", "{}")
        assert status == 201, kernel
        gateway.process.send_signal(signal.SIGHUP)
        assert ask(gateway.url)[0] == 200
        gateway.process.send_signal(signum)
        assert gateway.process.wait(20) == 0
        assert "Traceback" not in gateway.output
        assert f"Received {signum.name}, stopping." in gateway.output


@pytest.mark.parametrize(
    "moment", ["touch()", "import atexit; atexit.register(touch)"], ids=["while it is built", "when it has stopped"]
)
def test_sigterm_outside_of_serving_ends_it_with_0(tmp_path, moment):
    """A SIGTERM before the gateway serves, or another one after it has stopped, does not make its end a failure."""
    marker, config = tmp_path / "marker", tmp_path / "config.py"
    touch = f"def touch():\n    pathlib.Path({str(marker)!r}).touch()\n    time.sleep(3)"
    config.write_text(f"import pathlib, time\n{touch}\n{moment}\n")
    with (tmp_path / "log").open("wb") as log:
        argv = [sys.executable, "-m", "enterprise_gateway", "--port=0", f"--config={config}"]
        process = subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        if "atexit" in moment:
            wait_until(lambda: b"is available at" in (tmp_path / "log").read_bytes())
            process.send_signal(signal.SIGTERM)
        wait_until(marker.exists)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()


def wait_until(condition):
    """Wait until ``condition`` is true, 20 seconds at most."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_tells_its_versions(tmp_path):
    """A started program answers /api."""
    with gateway_process(tmp_path / "log") as gateway:
        status, answer = ask(gateway.url)
        assert status == 200
        assert set(answer) == {"version", "gateway_version"}


def test_importing_it_is_cheap_and_silent():
    """Importing the application loads no vendor library nor jupyter_server's kernel services, and starts no thread."""
    code = """
import sys, threading
import enterprise_gateway.enterprisegatewayapp
heavy = {"docker", "kubernetes", "paramiko", "yarn_api_client", "requests", "sqlalchemy", "IPython", "ipykernel",
         "watchdog", "jupyter_events", "jupyter_server.services"}
print(sorted(heavy & set(sys.modules)), threading.active_count())
"""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[] 1\n", "")


def test_the_open_file_limit_is_raised(tmp_path):
    """The soft limit of open files becomes the hard limit: kernels and clients need many."""
    command = f"ulimit -S -n 256 && exec {sys.executable} -m enterprise_gateway --port=0"
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        for line in process.stderr:
            if "is available at" in line:
                break
        with open(f"/proc/{process.pid}/limits") as limits:
            soft, hard = next(line.split()[3:5] for line in limits if line.startswith("Max open files"))
        assert soft == hard != "256"
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(20)


def test_the_log_has_the_format_of_3x(tmp_path):
    """Level, date, milliseconds and logger stand where scripts expect them, for libraries too; no token."""
    with gateway_process(tmp_path / "log") as gateway:
        ask(gateway.url, path="/api?token=secret")
        gateway.stop()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    start = rf"\[I {stamp} EnterpriseGatewayApp\] Jupyter Enterprise Gateway \S+ is available at"
    assert re.search(start, gateway.output)
    assert re.search(rf"\[I {stamp} tornado.access\] 200 GET /api", gateway.output)
    assert "secret" not in gateway.output


def test_interrupting_twice_ends_it(tmp_path):
    """Two Ctrl-C in a row end the program at once, whatever it is doing."""
    with gateway_process(tmp_path / "log") as gateway:
        gateway.process.send_signal(signal.SIGINT)
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(20) in {0, 128 + signal.SIGINT}


def test_launch_instance_is_the_console_script():
    """``launch_instance`` of module and class make the singleton application."""
    assert enterprisegatewayapp.launch_instance.__self__ is EnterpriseGatewayApp
