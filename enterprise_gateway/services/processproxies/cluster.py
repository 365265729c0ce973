"""Kernels on a cluster, which knows whether they are alive and where they run."""

from __future__ import annotations

import asyncio
import inspect
import signal
from abc import ABCMeta, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, ClassVar

from ...core import envvars
from ...core.errors import GatewayError, KernelLaunchError, LauncherFailedError, LaunchTimeoutError
from ...core.states import Phase, State
from ...transport.commport import CommPortError, connection_ended
from .contract import ENDING_SIGNALS
from .launchedkernel import LaunchedKernel
from .remote import LIVENESS_SECONDS, NEVER_ENDING, RemoteProcessProxy
from .startup import first_result
from .watched import Watched

PLACE_SECONDS = 5.0  # grace period for the cluster to tell the address, if the launcher reports at the last moment
REPORT_SECONDS = 0.2  # the report of a launcher that has ended may still be in transit for this long
EAGER_SECONDS = 10.0  # the cluster is polled more often for this long after a launcher is gone
RECONNECT_SECONDS = 60.0  # pause before a live kernel's lost launcher is contacted again
GONE = State(Phase.ENDED)


class ClusterProcessProxy(RemoteProcessProxy, metaclass=ABCMeta):
    """A kernel on a cluster.

    A back end implements five verbs: :meth:`submit`, :meth:`probe`, :meth:`signal`, :meth:`stop` and
    :meth:`describe`. It lists the attributes to be ``remembered`` of a kernel, and can name a table that reports
    changes of its state (:attr:`watched`).

    Verbs may be plain methods, which run in a thread, one at a time for each kernel, and may block; :meth:`submit` and
    :meth:`describe` may also be coroutines. They raise errors of :mod:`enterprise_gateway.core.errors`; an error that
    means that the cluster does not answer never makes a kernel count as dead.

    Everything else is done here. :meth:`probe` decides whether the kernel is alive and where it runs. The launcher's
    connection only carries signals, and when it ends, the cluster is asked; a launch script that has ended without an
    error does not mean that the kernel is dead.
    """

    remembered: ClassVar[tuple[str, ...]] = ()
    """Attributes with JSON values that are recorded, and restored in a gateway that takes the kernel over."""

    def __init__(self, kernel_manager: LaunchedKernel, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config)
        self._is_submitted = False
        self._is_stopped = False
        self.state: State | None = None  # the last one that the cluster reported

    # -- the verbs -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def submit(self, kernel_cmd: list[str], **kwargs: Any) -> Any:
        """Start the kernel on the cluster, directly or with a launch script (:meth:`launch_kernel`).

        Parameters
        ----------
        kernel_cmd
            The filled command line of the kernelspec.
        kwargs
            ``env``: the launcher's environment; ``cwd``; ``kernel_headers``.

        Raises
        ------
        KernelLaunchError
            It cannot be started. :meth:`stop` is called in any case.
        """

    @abstractmethod
    def probe(self) -> State | None:
        """Return the kernel's present state on the cluster; None if the cluster does not know the kernel.

        Raises
        ------
        GatewayError
            The cluster does not answer.
        """

    def signal(self, signum: int) -> bool:
        """Send a signal through the cluster; return False if that is not possible or the kernel is not there.

        Called to end the kernel (SIGTERM), and for other signals if the launcher cannot be reached.
        """
        return False

    @abstractmethod
    def stop(self) -> None:
        """Kill the kernel, and remove its resources from the cluster; there may be none.

        Called instead of SIGKILL, and at least once per launch, at the latest when the kernel is gone.
        """

    def describe(self) -> Any:
        """Return an explanation of a failed launch for users: the last lines of a log, a hint; empty if there is none.

        Called when the launcher has ended early, and when a launch has timed out.
        """
        return ""

    @property
    def watched(self) -> Watched | None:
        """The table that reports changes of the kernel's state; read after the kernel was submitted.

        If there is no such table (None), :meth:`probe` is called every ``EG_POLL_INTERVAL`` seconds.
        """
        return None

    # -- launch --------------------------------------------------------------------------------------------------------

    async def launch_process(self, kernel_cmd: list[str], **kwargs: Any) -> None:
        """Authorize the user, submit the kernel, and wait for its report, its failure or the time-out."""
        await super().launch_process(kernel_cmd, **kwargs)
        self._is_submitted = True  # from here on something may exist
        await self._perform(self.submit, kernel_cmd, **kwargs)
        self.progress.reach(Phase.SUBMITTED, self.assigned_host)
        await self.confirm_remote_startup()

    async def _perform(self, verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(verb):
            return await verb(*args, **kwargs)
        return await self.in_thread(verb, *args, **kwargs)

    async def watch_for_failure(self) -> None:
        """Raise the reason of a failure, as soon as the launch script has failed or the kernel has ended."""
        await first_result(super().watch_for_failure(), self._fail_when_ended())

    async def _fail_when_ended(self) -> None:
        state = await self._state_at_start(lambda state: state.has_ended)
        await asyncio.sleep(REPORT_SECONDS)
        raise LauncherFailedError(await self._describe_end(state))

    async def _describe_end(self, state: State) -> str:
        ended = "ended"
        if state.exit_code is not None:
            code = state.exit_code
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        place = state.host or self.assigned_host
        end = f"The launcher of kernel {self.kernel_id} {ended}" + (f" on {place}" if place else "")
        end += f": {state.reason}." if state.reason else "."
        return " ".join(part for part in (end, await self._description()) if part)

    async def _description(self) -> str:
        try:
            return str(await self._perform(self.describe))
        except GatewayError as error:
            return f"(No further information: {error})"
        except Exception as error:  # noqa: BLE001  # a defect of a back end must not hide why the launch has failed
            self.log.warning("The back end failed to describe the launch of kernel %s: %r", self.kernel_id, error)
            return ""

    async def describe_timeout(self, seconds: float) -> str:
        """Add the back end's explanation."""
        sentence, more = await super().describe_timeout(seconds), await self._description()
        return f"{sentence}. On {self.assigned_host or 'the cluster'}: {more}" if more else sentence

    async def _find_place(self) -> None:
        """Wait until the cluster tells the kernel's address, because its launcher may report first."""
        if self.assigned_ip:
            return
        patience = max(self.deadline.remaining, PLACE_SECONDS)
        try:
            state = await asyncio.wait_for(
                self._state_at_start(lambda state: bool(state.ip) or state.has_ended), patience
            )
        except (asyncio.TimeoutError, TimeoutError):
            raise LaunchTimeoutError(
                f"KernelID: '{self.kernel_id}' launch timeout due to: its launcher has reported, but the cluster does "
                "not tell its address"
            ) from None
        if not self.assigned_ip:
            raise LauncherFailedError(await self._describe_end(state))

    # -- states on the cluster ----------------------------------------------------------------------------------------

    async def _first_state(self, is_wanted: Callable[[State], bool], *, eager: bool) -> State:
        async with aclosing(self.states(eager=eager)) as states:
            async for state in states:
                self._take(state)
                if is_wanted(state):
                    return state
        raise AssertionError("states do not end")

    async def _state_at_start(self, is_wanted: Callable[[State], bool]) -> State:
        """Return the first state of this kind; a back end that fails to tell of states fails the start."""
        try:
            return await self._first_state(is_wanted, eager=True)
        except GatewayError:
            raise
        except Exception as error:
            raise KernelLaunchError(
                f"What became of kernel {self.kernel_id} cannot be found out: "
                f"its back end {type(self).__name__} fails with {type(error).__name__}: {error}"
            ) from error

    def _take(self, state: State) -> None:
        self.state = state
        if state.ip and not self.assigned_ip:
            self.assigned_ip = self.ip = state.ip
            self.assigned_host = state.host or self.assigned_host
        is_starting = self.expectation is not None and self.connection is None
        if is_starting and not state.has_ended:
            self.progress.reach(state.phase, state.reason or state.host)

    async def states(self, *, eager: bool) -> AsyncGenerator[State, None]:
        """Yield the kernel's present state and each later one; nothing while the cluster does not answer.

        A kernel that is gone has ended. A kernel that the cluster does not know yet has no state.
        """
        watched = self.watched
        changes = self._probed() if watched is None else self._told(watched, eager)
        async with aclosing(changes):
            async for state in changes:
                yield state

    async def _probed(self) -> AsyncGenerator[State, None]:
        former: State | None = None
        while True:
            try:
                state = await self.in_thread(self._present_state)
            except GatewayError as error:
                self.log.debug("The state of kernel %s is unknown: %s", self.kernel_id, error)
            else:
                if state is not None and state != former:
                    former = state
                    yield state
            await asyncio.sleep(envvars.EG_POLL_INTERVAL())

    async def _told(self, watched: Watched, eager: bool) -> AsyncGenerator[State, None]:
        loop = asyncio.get_running_loop()
        changes: asyncio.Queue[State] = asyncio.Queue()

        def on_change(state: State | None) -> None:
            with suppress(RuntimeError):  # the loop is closed, so nothing waits for the change
                loop.call_soon_threadsafe(changes.put_nowait, state or GONE)

        exists = watched.exists or self._is_known
        registration = watched.watch.register(watched.key, on_change, eager=eager, exists=exists)
        try:
            while True:
                yield await changes.get()
        finally:
            registration.cancel()

    @property
    def _is_known(self) -> bool:
        """Whether the cluster has known the kernel, so that the kernel is gone if the cluster no longer knows it."""
        return self.state is not None or self.connection is not None or self.comm is not None

    def _present_state(self) -> State | None:
        state = self.probe()
        if state is None and self._is_known:
            state = GONE
        self.state = state
        return state

    # -- life ----------------------------------------------------------------------------------------------------------

    def poll(self) -> Any:
        """Return None while the kernel is alive on the cluster, or is not known there yet.

        Raises
        ------
        GatewayError
            The cluster does not answer.
        """
        if not self._is_submitted:
            return False
        state = self._present_state()
        if state is None or not state.has_ended:
            return None
        return False if state.exit_code is None else state.exit_code

    async def wait_for_exit(self) -> int:
        """Wait until the kernel has ended on the cluster; return its exit code, or 0 if that is unknown."""
        while self._is_submitted and (self._is_known or not self._is_stopped):
            state = await first_result(self._ended(eager=self._is_ending), self._launcher_gone())
            if state is None:  # usually because the kernel has ended: the cluster will know soon
                state = await first_result(self._ended(eager=True), asyncio.sleep(EAGER_SECONDS))
            if state is None:  # it is alive, but its launcher is unreachable, perhaps only for a moment
                state = await first_result(self._ended(eager=False), asyncio.sleep(RECONNECT_SECONDS))
            if state is not None:
                return state.exit_code or 0
        return 0

    async def _ended(self, *, eager: bool) -> State:
        return await self._first_state(lambda state: state.has_ended, eager=eager)

    async def _launcher_gone(self) -> None:
        """Return when the connection to the launcher has ended, or a new one is refused.

        Launchers of version 1 keep no connection open.
        """
        watched = self.watched
        is_told = watched is not None and watched.tells_at_once
        while self.comm is not None and self.comm.is_authenticated and not is_told:
            is_gone = False
            with suppress(OSError, CommPortError):
                is_gone = not await self.in_thread(self.comm.probe)
            if is_gone:
                return
            connection = self.comm.duplicate() if self.comm is not None else None
            if connection is not None:
                await connection_ended(connection)
                return
            await asyncio.sleep(LIVENESS_SECONDS)  # it does not answer
        await asyncio.sleep(NEVER_ENDING)

    def send_signal(self, signum: int) -> bool | None:
        """Signal the kernel through its launcher, or through the cluster to end it."""
        if signum == 0:
            return None if self.poll() is None else False
        if signum == signal.SIGKILL:
            return self.kill()
        self._is_ending = self._is_ending or signum in ENDING_SIGNALS
        is_sent = None if signum in ENDING_SIGNALS else self._ask_launcher(signum)
        if not is_sent:
            is_sent = self._by_cluster(signum)
        if not is_sent and signum in ENDING_SIGNALS:
            is_sent = self._ask_launcher(signum)
        return None if is_sent else False

    def _by_cluster(self, signum: int) -> bool:
        try:
            return self.signal(signum)
        except GatewayError as error:
            self.log.warning("Kernel %s could not be sent signal %d: %s", self.kernel_id, signum, error)
            return False

    def kill(self) -> bool | None:
        """Kill the kernel."""
        self._is_ending = True
        if not self._is_submitted:
            return False
        self._is_stopped = True
        try:
            self.stop()
        except GatewayError as error:
            self.log.warning("Kernel %s could not be stopped: %s", self.kernel_id, error)
            return None if self._ask_launcher(signal.SIGKILL) else False
        return None

    def cleanup(self) -> None:
        """Remove the kernel from the cluster, and forget it."""
        try:
            if self._is_submitted and not self._is_stopped:
                self.kill()
        finally:
            self._is_submitted = False
            super().cleanup()

    # -- persistence ---------------------------------------------------------------------------------------------------

    def get_process_info(self) -> dict[str, Any]:
        """Add the ``remembered`` attributes."""
        return {**super().get_process_info(), **{name: getattr(self, name) for name in self.remembered}}

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """Restore the ``remembered`` attributes that the record has."""
        for name in self.remembered:
            if process_info.get(name) is not None:
                setattr(self, name, process_info[name])
        super().load_process_info(process_info)
        self._is_submitted = True
