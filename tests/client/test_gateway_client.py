"""The client for scripts does with a real gateway what its documentation says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from enterprise_gateway.client.gateway_client import GatewayClient, KernelClient
from tests.support.processes import ServerProcess, gateway_process


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[ServerProcess]:
    """Our gateway as a program."""
    with gateway_process(tmp_path / "log", ["--EnterpriseGatewayApp.list_kernels=True"]) as process:
        yield process


@pytest.fixture
def client(gateway: ServerProcess) -> GatewayClient:
    """A client of it."""
    return GatewayClient(urlsplit(gateway.url).netloc)


@pytest.fixture
def kernel(gateway: ServerProcess, client: GatewayClient) -> Iterator[KernelClient]:
    """A kernel that is gone after the test."""
    kernel = client.start_kernel("python3")
    yield kernel
    assert client.shutdown_kernel(kernel)
    assert requests.get(f"{gateway.url}/api/kernels", timeout=10).json() == []


def test_output_results_and_displays_are_concatenated(kernel: KernelClient) -> None:
    """What a person would see comes as one text."""
    code = ["import sys", "print('out')", "print('err', file=sys.stderr)", "display(1)", "6 * 7"]
    text, has_error = kernel.execute(code)
    assert not has_error
    assert sorted(text.replace("42", "42\n").split()) == sorted(["out", "err", "142"])


def test_an_error_is_its_name_value_and_traceback(kernel: KernelClient) -> None:
    """The text tells the error, and the kernel goes on."""
    text, has_error = kernel.execute("1 / 0")
    assert has_error
    assert text.startswith("ZeroDivisionError:division by zero:")
    assert kernel.execute("print(1)") == ("1\n", False)


def test_many_lines_come_complete_and_in_order(kernel: KernelClient) -> None:
    """Nothing is lost or mixed up."""
    text, _ = kernel.execute("for i in range(5000): print(i)")
    assert text.split() == [str(i) for i in range(5000)]


def test_requests_of_several_threads_do_not_mix(kernel: KernelClient) -> None:
    """Each caller gets the output of its own code."""
    answers: dict[int, tuple[str, bool]] = {}

    def ask(number: int) -> None:
        answers[number] = kernel.execute(f"print({number})")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: (f"{number}\n", False) for number in range(8)}


def test_the_interrupt_thread_ends_an_endless_loop(kernel: KernelClient) -> None:
    """The interrupt comes after the wait time, while the caller waits in execute."""
    kernel.start_interrupt_thread(wait_time=1)
    began = time.monotonic()
    text, has_error = kernel.execute("import time\nwhile True: time.sleep(0.01)", timeout=30)
    kernel.terminate_interrupt_thread()
    assert has_error
    assert text.startswith("KeyboardInterrupt")
    assert 0.9 < time.monotonic() - began < 10


def test_a_terminated_interrupt_thread_interrupts_nothing(kernel: KernelClient) -> None:
    """Code that ends in time is left alone."""
    kernel.start_interrupt_thread(wait_time=1)
    kernel.terminate_interrupt_thread()
    assert kernel.execute("import time; time.sleep(1.5); print('done')") == ("done\n", False)


def test_a_restart_gives_a_fresh_kernel(kernel: KernelClient) -> None:
    """Variables are gone, the id stays, and the state is known."""
    kernel_id = kernel.kernel_id
    kernel.execute("x = 1")
    assert kernel.restart() is True
    text, has_error = kernel.execute("x")
    assert has_error
    assert text.startswith("NameError")
    assert (kernel.kernel_id, kernel.get_state()) == (kernel_id, "idle")


def test_code_that_takes_too_long_is_reported(kernel: KernelClient) -> None:
    """The time-out is an error of its own, and the kernel can still be used."""
    with pytest.raises(TimeoutError, match="still running the code after 0.5 s"):
        kernel.execute("import time; time.sleep(1.5)", timeout=0.5)
    assert kernel.execute("print(1)") == ("1\n", False)


def test_a_dying_kernel_ends_the_call(kernel: KernelClient) -> None:
    """The caller learns that the kernel went away under its code."""
    text, has_error = kernel.execute("import os; os._exit(1)", timeout=30)
    assert has_error
    assert "KernelDied: The kernel died before it replied" in text


def test_user_and_variables_reach_the_kernel(client: GatewayClient) -> None:
    """The user name is an argument, and so are more variables."""
    kernel = client.start_kernel("python3", username="ada", extra_env={"KERNEL_COLOUR": "blue"})
    text, _ = kernel.execute("import os; print(os.environ['KERNEL_USERNAME'], os.environ['KERNEL_COLOUR'])")
    client.shutdown_kernel(kernel)
    assert text == "ada blue\n"


def test_a_refusal_has_status_and_reason(client: GatewayClient) -> None:
    """The error's text says what the gateway said."""
    with pytest.raises(RuntimeError, match="404 response.*nonsense"):
        client.start_kernel("nonsense")


def test_a_token_is_sent(tmp_path: Path) -> None:
    """The token opens the REST calls and the websocket."""
    with gateway_process(tmp_path / "log", ["--EnterpriseGatewayApp.auth_token=sesame"]) as gateway:
        host = urlsplit(gateway.url).netloc
        with pytest.raises(RuntimeError, match="401"):
            GatewayClient(host).start_kernel("python3")
        client = GatewayClient(host, auth_token="sesame")
        kernel = client.start_kernel("python3")
        assert kernel.execute("print(1)") == ("1\n", False)
        client.shutdown_kernel(kernel)
        assert "sesame" not in gateway.output


def test_the_environment_names_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a host, the variable decides, and localhost:8888 when it is not set."""
    assert GatewayClient().http_api_endpoint == "http://localhost:8888/api/kernels"
    monkeypatch.setenv("GATEWAY_HOST", "gw:1")
    client = GatewayClient(use_secure_connection=True)
    assert (client.http_api_endpoint, client.ws_api_endpoint) == (
        "https://gw:1/api/kernels",
        "wss://gw:1/api/kernels",
    )


def test_no_gateway_is_an_error_at_once() -> None:
    """A refused connection is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(requests.ConnectionError):
        GatewayClient(f"127.0.0.1:{port}").start_kernel("python3")
