"""Start kernels on a gateway and run code on them: for scripts and integration tests.

::

    gateway = GatewayClient("localhost:8888")
    kernel = gateway.start_kernel("python3")
    text, has_error = kernel.execute("print(6 * 7)")
    gateway.shutdown_kernel(kernel)

Needs the package websocket-client, which the extra ``client`` installs.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from typing import Any

import requests

from ..core.deadline import Deadline
from ..core.envvars import EnvVar
from .channel import DEAD_MSG_ID, KernelChannel, Message

GATEWAY_HOST = EnvVar(("GATEWAY_HOST",), str, "localhost:8888", "Host and port of the gateway.")
KERNEL_USERNAME = EnvVar(("KERNEL_USERNAME",), str, "bob", "User that kernels are started for.")
KERNEL_LAUNCH_TIMEOUT = EnvVar(("KERNEL_LAUNCH_TIMEOUT",), float, 40.0, "Seconds that a kernel may take to start.")
REQUEST_TIMEOUT = EnvVar(("REQUEST_TIMEOUT",), float, 120.0, "Seconds that any other request may take.")
LOG_LEVEL = EnvVar(("LOG_LEVEL",), str, "", "Level of the client's loggers; left alone when empty.")
# The gateway answers within the launch time-out; its answer must still have time to arrive.
_MARGIN_SECONDS = 5.0


class GatewayClient:
    """Starts and stops kernels on one gateway.

    Parameters
    ----------
    host
        ``name:port`` of the gateway; environment variable ``GATEWAY_HOST`` when not given.
    use_secure_connection
        Whether to speak https and wss.
    auth_token
        The gateway's token, if it requires one.
    """

    def __init__(self, host: str | None = None, use_secure_connection: bool = False, auth_token: str = "") -> None:
        host = host or GATEWAY_HOST()
        secure = "s" if use_secure_connection else ""
        self.http_api_endpoint = f"http{secure}://{host}/api/kernels"
        self.ws_api_endpoint = f"ws{secure}://{host}/api/kernels"
        self.log = _logger("GatewayClient")
        self._headers = {"Authorization": f"token {auth_token}"} if auth_token else {}

    def start_kernel(
        self,
        kernelspec_name: str,
        username: str | None = None,
        timeout: float | None = None,
        extra_env: Mapping[str, str] | None = None,
    ) -> KernelClient:
        """Start a kernel and connect to it.

        Parameters
        ----------
        kernelspec_name
            Name of the kernelspec on the gateway.
        username
            Becomes ``KERNEL_USERNAME``; the default is the environment variable of that name.
        timeout
            Seconds that the kernel may take to start; ``KERNEL_LAUNCH_TIMEOUT`` when not given.
        extra_env
            Further variables for the kernel, which take precedence over the two above.

        Raises
        ------
        RuntimeError
            The gateway refused, or the kernel did not start; the message holds the status code and the reason.
        """
        timeout = KERNEL_LAUNCH_TIMEOUT() if timeout is None else timeout
        env = {"KERNEL_USERNAME": username or KERNEL_USERNAME(), "KERNEL_LAUNCH_TIMEOUT": f"{timeout:g}"}
        self.log.info("Starting a %s kernel", kernelspec_name)
        response = requests.post(
            self.http_api_endpoint,
            json={"name": kernelspec_name, "env": {**env, **(extra_env or {})}},
            headers=self._headers,
            timeout=timeout + _MARGIN_SECONDS,
        )
        _check(response, 201, f"starting a kernel of {kernelspec_name!r}")
        kernel_id = response.json()["id"]
        self.log.info("Started kernel %s", kernel_id)
        return KernelClient(
            self.http_api_endpoint, self.ws_api_endpoint, kernel_id, timeout=timeout, headers=self._headers
        )

    def shutdown_kernel(self, kernel: KernelClient | None) -> bool:
        """Stop a kernel that this client started; ``None`` is accepted and does nothing."""
        return kernel.shutdown() if kernel is not None else False


class KernelClient:
    """Runs code on one kernel; returned by :meth:`GatewayClient.start_kernel`."""

    DEAD_MSG_ID = DEAD_MSG_ID
    POST_IDLE_TIMEOUT = 0.5
    DEFAULT_INTERRUPT_WAIT = 1

    def __init__(
        self,
        http_api_endpoint: str,
        ws_api_endpoint: str,
        kernel_id: str,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.kernel_id = kernel_id
        self.kernel_http_api_endpoint = f"{http_api_endpoint}/{kernel_id}"
        self.kernel_ws_api_endpoint = f"{ws_api_endpoint}/{kernel_id}/channels"
        self.log = _logger("KernelClient")
        self._headers = dict(headers or {})
        self._timeout = REQUEST_TIMEOUT() if timeout is None else timeout
        self._interrupter: threading.Thread | None = None
        self._stop_interrupter = threading.Event()
        self._channel = self._connect(self._timeout)

    def execute(self, code: str | list[str], timeout: float | None = None) -> tuple[str, bool]:
        """Run ``code`` (a list is joined into lines) and wait until the kernel is idle again.

        Returns
        -------
        tuple
            The text of everything that the code printed, displayed and returned, or of its error
            (``ename:evalue:traceback``), concatenated; and whether there was an error.

        Raises
        ------
        TimeoutError
            The code is still running after ``timeout`` seconds (``REQUEST_TIMEOUT`` when not given).
        """
        timeout = REQUEST_TIMEOUT() if timeout is None else timeout
        content = {
            "code": code if isinstance(code, str) else "\n".join(code),
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        with self._channel.request("execute_request", content) as replies:
            return self._collect(replies, Deadline(timeout))

    def interrupt(self) -> bool:
        """Interrupt what the kernel is running."""
        response = requests.post(
            f"{self.kernel_http_api_endpoint}/interrupt", headers=self._headers, timeout=REQUEST_TIMEOUT()
        )
        _check(response, 204, f"interrupting kernel {self.kernel_id}")
        return True

    def restart(self, timeout: float | None = None) -> bool:
        """Restart the kernel, connect to it again, and return once it answers."""
        timeout = REQUEST_TIMEOUT() if timeout is None else timeout
        deadline = Deadline(timeout)
        self._channel.close()
        response = requests.post(f"{self.kernel_http_api_endpoint}/restart", headers=self._headers, timeout=timeout)
        _check(response, 200, f"restarting kernel {self.kernel_id}")
        self._channel = self._connect(max(deadline.remaining, 1.0))
        return True

    def get_state(self) -> str:
        """Return the kernel's execution state, such as ``idle`` or ``busy``."""
        response = requests.get(self.kernel_http_api_endpoint, headers=self._headers, timeout=REQUEST_TIMEOUT())
        _check(response, 200, f"reading the state of kernel {self.kernel_id}")
        return str(response.json()["execution_state"])

    def shutdown(self) -> bool:
        """Close the websocket and stop the kernel; a missing kernel is not an error."""
        self.terminate_interrupt_thread()
        self._channel.close()
        response = requests.delete(self.kernel_http_api_endpoint, headers=self._headers, timeout=REQUEST_TIMEOUT())
        if response.status_code != 404:
            _check(response, 204, f"shutting down kernel {self.kernel_id}")
        return True

    def start_interrupt_thread(self, wait_time: float = DEFAULT_INTERRUPT_WAIT) -> None:
        """Interrupt the kernel from another thread ``wait_time`` seconds from now, while this one is in ``execute``."""
        self.terminate_interrupt_thread()
        self._stop_interrupter.clear()
        self._interrupter = threading.Thread(
            target=self._interrupt_later, args=(wait_time,), name=f"interrupt-{self.kernel_id}", daemon=True
        )
        self._interrupter.start()

    def terminate_interrupt_thread(self) -> None:
        """End the thread of :meth:`start_interrupt_thread`, and cancel its interrupt if that is still pending."""
        if self._interrupter is not None:
            self._stop_interrupter.set()
            self._interrupter.join()
            self._interrupter = None

    def _interrupt_later(self, wait_time: float) -> None:
        if not self._stop_interrupter.wait(wait_time):
            try:
                self.interrupt()
            except (requests.RequestException, RuntimeError):
                self.log.exception("Could not interrupt kernel %s", self.kernel_id)

    def _connect(self, timeout: float) -> KernelChannel:
        """Open the websocket and wait until the kernel answers through it."""
        deadline = Deadline(timeout)
        channel = KernelChannel(self.kernel_ws_api_endpoint, self._headers, timeout, self.log)
        try:
            while True:
                with channel.request("kernel_info_request", {}) as replies:
                    # a kernel that is just starting may miss a request
                    if self._has_reply(replies, Deadline(min(2.0, deadline.remaining))):
                        return channel
                if deadline.expired:
                    raise TimeoutError(f"Kernel {self.kernel_id} did not answer within {timeout:g} seconds")
        except BaseException:
            channel.close()
            raise

    def _has_reply(self, replies: queue.SimpleQueue[Message], deadline: Deadline) -> bool:
        while message := _next(replies, deadline.remaining):
            if message["parent_header"].get("msg_id") == DEAD_MSG_ID:
                raise RuntimeError(f"The gateway closed the websocket of kernel {self.kernel_id}")
            if message["channel"] == "shell":
                return True
        return False

    def _collect(self, replies: queue.SimpleQueue[Message], deadline: Deadline) -> tuple[str, bool]:
        """Gather outputs until both the reply and the idle status have come; either may be first."""
        output: list[str] = []
        has_error = replied = idle = False
        while not (replied and idle):
            message = _next(replies, min(self.POST_IDLE_TIMEOUT, deadline.remaining) if idle else deadline.remaining)
            if message is None and idle:
                break
            if message is None:
                raise TimeoutError(f"Kernel {self.kernel_id} is still running the code after {deadline.seconds:g} s")
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "closed" or content.get("execution_state") in {"dead", "restarting"}:
                state = "websocket closed" if kind == "closed" else f"kernel {content['execution_state']}"
                return "".join([*output, f"{state} while the code was running"]), True
            replied = replied or kind == "execute_reply"
            idle = idle or content.get("execution_state") == "idle"
            has_error = has_error or content.get("status") == "error" or kind == "error"
            output.append(_text(kind, content))
        return "".join(output), has_error


def _next(replies: queue.SimpleQueue[Message], timeout: float) -> Message | None:
    try:
        return replies.get(timeout=max(timeout, 0.0))
    except queue.Empty:
        return None


def _text(kind: str, content: Message) -> str:
    """Return what a person would see of one message."""
    if kind == "stream":
        return str(content["text"])
    if kind in {"execute_result", "display_data"}:
        data: Mapping[str, Any] = content["data"]
        return str(data.get("text/plain") or data.get("text/html") or "")
    if kind == "error":
        return f"{content['ename']}:{content['evalue']}:{content['traceback']}"
    return ""


def _check(response: requests.Response, expected: int, what: str) -> None:
    if response.status_code != expected:
        raise RuntimeError(f"Error {what}: {response.status_code} response: {response.text.strip()}")


def _logger(name: str) -> logging.Logger:
    log = logging.getLogger(name)
    if level := LOG_LEVEL():
        log.setLevel(level.upper())
    return log
