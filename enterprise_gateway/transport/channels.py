"""The gateway's one set of ZMQ sockets per kernel: connected once, any number of websockets attached.

``KernelChannels`` lives from a kernel's start to its end. Output goes to every attached client, replies to the one
that asked; output without a connected client is kept for replay. Restarts re-connect below the clients. Requests that a
kernel has not replied to when it ends are answered with an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol

import zmq

from ..core.connection import ConnectionInfo
from .frames import MAX_HEADER_BYTES, FrameError, Part, decode_header, decode_object
from .kernelconnection import KernelConnection, new_identity
from .kernelsockets import Log
from .limits import ChannelLimits
from .messages import KernelMessage
from .openrequests import (
    KERNEL_DIED,
    KERNEL_RESTARTED,
    KERNEL_SHUT_DOWN,
    MAX_ID_LENGTH,
    OpenRequests,
    OpenWork,
    Request,
    key_of,
)
from .outbox import TRY_AGAIN_LATER
from .ratelimit import RateLimitedWarnings
from .replay import Missed, ReplayLog
from .replaybudget import ReplayBudget
from .resumption import GAP_NOTICE, GATEWAY_RESTARTED, LOST_REPLY, PROOF_SECONDS, Memory
from .slices import Slices

__all__ = ["ChannelLimits", "ChannelsClient", "KernelChannels"]

MAX_SESSIONS_PER_CLIENT = 1_000
GOING_AWAY = 1001  # websocket close codes
SERVICE_RESTART = 1012
LAST_WORDS_SECONDS = 2.0  # that a kernel which has died may take to deliver what it wrote
LOST_REPLY_SECONDS = 1.0  # after ``idle`` the reply to an earlier gateway has come, or does not
LOST_IDLE_SECONDS = 1.0  # after its reply a request is over, whether or not the kernel says ``idle``
RESTARTED = "The kernel was restarted before it replied to this request."
TOO_LARGE_TO_KEEP = "it is larger than what is kept for a client that is away"

REPLACED = "another websocket with this session_id was opened"


class ChannelsClient(Protocol):
    """What attaches: one websocket."""

    def put(self, message: KernelMessage, *, unlimited: bool = False) -> None:
        """Queue a message; ``unlimited`` when it is replayed."""

    def flush(self) -> None:
        """Send what is queued."""

    refused: KernelMessage | None
    """The message because of which the client has ended the connection."""

    def unsent(self) -> list[KernelMessage]:
        """Return what was put and is not known to have arrived."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close the websocket: call :meth:`KernelChannels.leave` now, ``detach`` when it is closed."""

    def abort(self) -> None:
        """Cut the connection at once; nothing more goes out."""


class KernelChannels:
    """Relays between one kernel and its clients.

    Made by the kernel's manager, which calls :meth:`connect` when the kernel has reported its ports and again after
    each restart (with :meth:`hold` before a requested one, and :meth:`announce_state` ``"restarting"``
    before one because the kernel has died), and :meth:`close` at the end. Must be used in the event loop's thread.
    Requests of clients wait until output is known to arrive (at most ``limits.info_timeout``), so that nothing of the
    first cell's output is lost.

    Parameters
    ----------
    identity
        Of the sockets; random unless given.
    user
        Whose kernel it is.
    budget
        What all kernels together may keep; without one the kernel's own limits are all.
    slices
        In which the large messages of all kernels and their clients are taken apart.
    """

    __slots__ = (
        "__weakref__",
        "_activity",
        "_attachments",
        "_batch",
        "_clients",
        "_connection",
        "_death",
        "_has_gap",
        "_inherited",
        "_is_dead",
        "_is_flushing",
        "_is_held",
        "_is_unproven",
        "_last_cell",
        "_leaving",
        "_limits",
        "_log",
        "_lost_idle_timer",
        "_lost_reply_timer",
        "_proof_timer",
        "_replay",
        "_requests",
        "_routes",
        "_warnings",
        "_work",
        "busy_since",
        "execution_state",
        "kernel_id",
        "on_change",
        "slices",
        "user",
    )

    def __init__(
        self,
        kernel_id: str,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        limits: ChannelLimits,
        log: Log,
        identity: str = "",
        user: str = "",
        budget: ReplayBudget | None = None,
        slices: Slices | None = None,
    ) -> None:
        self.kernel_id = kernel_id
        self.user = user
        self.slices = slices or Slices()
        self.execution_state = "starting"
        self.busy_since: datetime | None = None
        self.on_change: list[Callable[[KernelChannels], None]] = []
        self._limits = limits
        self._log = log
        self._warnings = RateLimitedWarnings(log)
        self._activity = time.time()
        self._replay = ReplayLog(
            limits.replay, limits.detached_sessions, limits.detached_seconds, budget or ReplayBudget(log), user
        )
        self._attachments: dict[ChannelsClient, _Attachment] = {}
        self._leaving: dict[ChannelsClient, str] = {}
        self._clients: tuple[ChannelsClient, ...] = ()
        self._routes: dict[str, ChannelsClient] = {}
        self._batch: list[KernelMessage] = []
        self._last_cell = b"{}"  # raw header of the request that was executed last
        self._is_held = False  # clients were not told of the restart in progress
        self._is_dead = False
        self._death = ""  # what is said to requests of a dead kernel
        self._requests = OpenRequests()
        self._inherited = OpenRequests()  # sent by an earlier gateway
        self._work = OpenWork(self._requests)
        self._lost_idle_timer: asyncio.TimerHandle | None = None
        self._lost_reply_timer: asyncio.TimerHandle | None = None
        self._is_unproven = False  # taken over from another gateway, and the kernel has not said yet what it does
        self._has_gap = False  # the kernel may have said something that no gateway has heard
        self._proof_timer: asyncio.TimerHandle | None = None
        self._is_flushing = False
        self._connection = KernelConnection(
            context=context,
            identity=identity or new_identity(),
            limits=limits,
            on_message=self._on_message,
            on_batch=self._flush_soon,
            slices=self.slices,
            log=log,
            warnings=self._warnings,
        )

    # -- the kernel's manager ------------------------------------------------------------------------------------

    @property
    def last_activity(self) -> datetime:
        """When the kernel last showed activity (UTC), by jupyter_server's rules."""
        return datetime.fromtimestamp(self._activity, timezone.utc)

    @property
    def connections(self) -> int:
        """How many clients are attached."""
        return len(self._clients)

    @property
    def kernel_info(self) -> dict[str, Any] | None:
        """The content of the kernel's ``kernel_info_reply``, None before it came."""
        return self._connection.kernel_info

    @property
    def connected_at(self) -> float:
        """When the sockets to the present process were opened, in seconds since 1970; 0 before that."""
        return self._connection.connected_at

    @property
    def answered_at(self) -> float:
        """When the present process has answered for the first time, in seconds since 1970; 0 before that."""
        return self._connection.answered_at

    def connect(self, info: ConnectionInfo, *, is_contested: bool = False, delay: float = 0.0) -> None:
        """Connect to the kernel, in place of an earlier connection; returns at once.

        Parameters
        ----------
        is_contested
            Whether it is in doubt whose kernel it is: then it gets nothing of its clients before it has proved that it
            has the key.
        delay
            Seconds until the sockets are opened, unless the kernel is needed before that.
        """
        self.end_process()
        self._replay.begin_process()
        self._connection.connect(info, is_contested=is_contested, delay=delay)
        self._is_dead = self._is_held = False
        self._set_state("starting")

    def contest(self) -> None:
        """Note that another launcher has reported for the kernel: it is to prove that it has the key, if it has not."""
        self._connection.contest()

    @property
    def awaits_proof(self) -> bool:
        """Whether the kernel gets nothing of its clients, since it is in doubt whose it is."""
        return self._connection.awaits_proof

    def hold(self) -> None:
        """Keep what clients send from now on until :meth:`connect`; called before a requested restart.

        Clients are not informed, because they take the status ``restarting`` for a death. They still receive what the
        process says until its end.
        """
        self._end_proof()
        self._connection.suspend()
        self._is_dead = False
        self._is_held = True
        self._set_state("restarting")

    @property
    def is_told_of_restart(self) -> bool:
        """Whether clients know that the kernel is being restarted: it has died."""
        return self.execution_state == "restarting" and not self._is_held

    async def last_words(self) -> None:
        """Wait until what a process that has ended wrote last is here, if anybody waits for a reply of it."""
        if self._requests or self._inherited:
            await self._connection.quiet(LAST_WORDS_SECONDS)

    def end_process(self, ename: str = KERNEL_RESTARTED, text: str = RESTARTED) -> None:
        """Take leave of the kernel's process, which has ended: to what it has not replied to, this error is the reply.

        Requests that it was not given yet wait for the next process, unless the kernel is dead.
        """
        self._end_proof()
        self._has_gap = False
        self._connection.disconnect(text)
        self._work.clear()
        open_requests = self._inherited.take() + self._requests.take(self._connection.held_back())
        for request in open_requests:
            if request.msg_type == "execute_request" and not request.is_replied:
                request.has_begun = True  # the first one has, though what the process said of it may be lost with it
                break
        for request in open_requests:
            self._answer(request, ename, text)
        if open_requests:
            self._flush()

    def announce_state(self, state: str, reason: str = "", ename: str = KERNEL_DIED) -> None:
        """Tell all clients that the kernel has died: it is ``restarting`` by itself, or ``dead`` for good.

        Who waits for a reply gets an error of the name ``ename`` before it. After ``restarting`` the clients' messages
        wait until :meth:`connect`; after ``dead`` requests are replied to with that error.
        """
        ended = "was shut down" if ename == KERNEL_SHUT_DOWN else "died"
        text = f"The kernel {ended} before it replied to this request" + (f": {reason}." if reason else ".")
        self._is_dead = state == "dead"
        self._is_held = False
        if self._is_dead:
            self._death = "The kernel is dead" + (f": {reason}." if reason else ".")
            self._connection.drop_pending()
        self.end_process(ename, text)
        content = {"execution_state": state, "reason": reason} if reason else {"execution_state": state}
        self._broadcast(self._connection.factory.make("iopub", "status", content), is_notice=True)
        self._flush()
        self._set_state(state)

    def memory(self) -> Memory:
        """Return what the next gateway needs for :meth:`resume`."""
        return Memory(
            execution_state=self.execution_state,
            last_activity=self._activity,
            busy_since=self.busy_since.timestamp() if self.busy_since is not None else 0.0,
            last_cell=self._last_cell.decode("utf-8", "replace"),
            requests=self._inherited.texts() + self._requests.texts(),
            sessions=(
                *self._replay.detached_sessions(),
                *((attachment.session_id, *attachment.sessions) for attachment in self._attachments.values()),
            ),
            identities=self._connection.identities,
        )

    def resume(self, memory: Memory) -> None:
        """Go on where an earlier gateway left off; called after :meth:`connect` to a kernel that was taken over.

        Until the kernel says what it does, it is what it was; when it does not answer for a second, it is busy.
        Clients of a kernel that was busy meanwhile are told that its output has a gap, and requests that it finished
        meanwhile are replied to with an error: the reply itself is lost.
        """
        self._connection.resume(memory.identities)
        if memory.execution_state != "idle" or memory.requests:
            self._connection.inherit()
        self._activity = memory.last_activity or self._activity
        self._last_cell = memory.last_cell.encode()
        self._inherited.restore(memory.requests)
        for sessions in memory.sessions:
            self._replay.detach(sessions[0], sessions[1:])
        self._is_unproven = True
        self._has_gap = memory.execution_state == "busy"
        self._proof_timer = asyncio.get_running_loop().call_later(PROOF_SECONDS, self._take_for_busy)
        if memory.execution_state in {"idle", "busy"}:
            self._set_state(memory.execution_state)
        if self.execution_state == "busy":
            self._work.begin(_decoded(self._last_cell))
        if memory.busy_since and self.execution_state == "busy":
            self.busy_since = datetime.fromtimestamp(memory.busy_since, timezone.utc)

    def tell(self, text: str) -> None:
        """Show ``text`` to all clients as error output of the cell that was executed last."""
        self._broadcast(self._notice(text, self._last_cell), is_notice=True)
        self._flush()

    async def ready(self, timeout: float) -> dict[str, Any]:
        """Wait until the kernel has answered and its output arrives; return its ``kernel_info_reply`` content.

        Raises
        ------
        TimeoutError
            It did not within ``timeout`` seconds.
        ConnectionError
            The kernel was restarted or shut down meanwhile.
        """
        return await self._connection.ready(timeout)

    @property
    def awaits_first_answer(self) -> bool:
        """Whether the kernel was started just now and has not answered yet: not after restarts and take-overs."""
        return self._connection.awaits_first_answer

    @property
    def has_clients(self) -> bool:
        """Whether a client is attached, or waits for the kernel's first answer to be."""
        return bool(self._clients) or self._connection.is_waited_for

    async def first_answer(self) -> None:
        """Wait until a new kernel has answered for the first time, is restarted or gone, or takes too long."""
        await self._connection.first_answer()

    async def request(
        self, msg_type: str, content: dict[str, Any], channel: str = "control", timeout: float = 5.0
    ) -> dict[str, Any]:
        """Send the gateway's own request and return the content of the kernel's reply.

        Raises
        ------
        TimeoutError
            No reply within ``timeout`` seconds.
        ConnectionError
            The kernel is not connected, or was restarted or shut down before it replied.
        """
        return await self._connection.request(msg_type, content, channel, timeout)

    def post(self, msg_type: str, content: dict[str, Any], channel: str = "control") -> None:
        """Send the gateway's own request without waiting for its reply; nothing when there is no connection."""
        self._connection.post(msg_type, content, channel)

    def close(self, reason: str = "the kernel was shut down", code: int = GOING_AWAY) -> None:
        """Close the sockets and every attached websocket, for good; ``code`` is the websockets' close code.

        Who waits for a reply gets an error first.
        """
        self._connection.drop_pending()
        self.end_process(KERNEL_SHUT_DOWN, f"The kernel has not replied to this request: {reason}.")
        self._close(reason, code)

    def _close(self, reason: str, code: int) -> None:
        self._end_proof()
        for timer in (self._lost_idle_timer, self._lost_reply_timer):
            if timer is not None:
                timer.cancel()
        self._lost_idle_timer = self._lost_reply_timer = None
        self._connection.disconnect(reason)
        self._connection.drop_pending()
        self._requests.clear()
        self._inherited.clear()
        self._is_dead = True
        for client in self._clients:
            client.close(code, reason)
        self._leaving.clear()
        self._replay.clear()

    def hand_over(self, reason: str) -> Memory:
        """Take in what has arrived, close for good, and return what the next gateway needs for :meth:`resume`."""
        self._connection.suspend()
        self._flush()
        memory = self.memory()
        self._close(reason, SERVICE_RESTART)  # the kernel lives, and replies to the next gateway
        return memory

    # -- clients -------------------------------------------------------------------------------------------------

    def attach(self, client: ChannelsClient, session_id: str, *, has_waited: bool = False) -> None:
        """Add a websocket and replay to it what its session missed, or what no client has seen.

        An older websocket of the same session is closed: it is the one that the client has lost. Of those that have
        waited together for the kernel's first answer (``has_waited``) none is older: the first that speaks is the one
        that the client has kept. Jupyter Server forgets a connection that is not open yet without closing it.
        """
        for rival in self._rivals(session_id):
            if has_waited and rival.has_waited and rival.has_spoken:
                client.close(GOING_AWAY, REPLACED)
                return
            if not (has_waited and rival.has_waited):
                rival.client.close(GOING_AWAY, REPLACED)
        for older, session in list(self._leaving.items()):
            if session == session_id:
                older.abort()
                self.detach(older)
        missed = self._replay.attach(session_id)
        attachment = _Attachment(client, self._replay.number, session_id, has_waited)
        self._attachments[client] = attachment
        self._clients = tuple(self._attachments)
        for session in (session_id, *missed.sessions):
            attachment.sessions[session] = None
            self._routes[session] = client
        self._send_missed(client, missed)
        self._changed()

    def leave(self, client: ChannelsClient) -> None:
        """Put nothing more to a websocket that is about to close; what comes is kept for its session."""
        attachment = self._attachments.pop(client, None)
        if attachment is None:
            return
        self._clients = tuple(self._attachments)
        for session in attachment.sessions:
            if self._routes.get(session) is client:
                del self._routes[session]
        self._leaving[client] = attachment.session_id
        self._replay.detach(attachment.session_id, attachment.sessions)
        if not self._clients:
            self._replay.start_unattended()
        self._changed()

    def detach(self, client: ChannelsClient) -> None:
        """Forget a websocket that is closed; what has not arrived is kept for its session.

        What the client refuses, or is too large to be kept, is replaced: it would be refused again.
        """
        self.leave(client)
        session_id = self._leaving.pop(client, None)
        if session_id is None:
            return
        unsent: list[KernelMessage] = []
        for message in client.unsent():
            if message is client.refused:
                self._warnings.warn("A message of %d bytes was dropped: its client does not take it", message.size)
                unsent += self._substitutes(message, "it is larger than the client takes")
            elif message.size > self._limits.replay:
                unsent += self._substitutes(message, TOO_LARGE_TO_KEEP)
            else:
                unsent.append(message)
        self._replay.keep_unsent(session_id, unsent)

    def send(
        self, client: ChannelsClient, channel: str, parts: list[Part], header: dict[str, Any] | None = None
    ) -> None:
        """Pass on a client's message; ``header`` is the decoded ``parts[0]`` if the caller has it.

        Raises
        ------
        FrameError
            The header is malformed or the message cannot be sent on this channel.
        """
        header = decode_header(parts[0]) if header is None else header
        attachment = self._attachments.get(client)
        if attachment is None:
            return
        if channel == "iopub":
            raise FrameError("clients cannot send on the iopub channel")
        allowed = self._limits.allowed_message_types
        if allowed and header.get("msg_type") not in allowed:
            raise FrameError("the message type is not allowed")
        session = header.get("session")
        if isinstance(session, str) and len(session) > MAX_ID_LENGTH:
            raise FrameError("the session in the header is too long")
        self._note_spoken(attachment)
        if session and isinstance(session, str) and self._routes.get(session) is not client:
            self._learn(attachment, session)
        msg_type = str(header.get("msg_type", ""))
        if channel != "stdin":
            request = Request(channel, msg_type, bytes(parts[0]), client, attachment.session_id)
            if self._is_dead:
                self._answer(request, KERNEL_DIED, self._death)
                self._flush()
                return
            self._requests.add(key_of(header), request)
        if not self._connection.submit(channel, msg_type, parts):
            self._warnings.warn("A websocket was closed: it sends more than the kernel takes")
            client.close(TRY_AGAIN_LATER, "too many messages wait for the kernel")

    def _note_spoken(self, attachment: _Attachment) -> None:
        """Keep this one of several websockets that have waited together, for it is the first to speak."""
        if attachment.has_waited and not attachment.has_spoken:
            for rival in self._rivals(attachment.session_id):
                if rival is not attachment:
                    rival.client.close(GOING_AWAY, REPLACED)
            self._learn(attachment, attachment.session_id)
        attachment.has_spoken = True

    def _rivals(self, session_id: str) -> list[_Attachment]:
        return [attachment for attachment in self._attachments.values() if attachment.session_id == session_id]

    def _learn(self, attachment: _Attachment, session: str) -> None:
        """Note that replies to ``session`` go to this websocket, and replay what waits for it."""
        client = attachment.client
        attachment.sessions[session] = None
        if len(attachment.sessions) > MAX_SESSIONS_PER_CLIENT:
            oldest = next(iter(attachment.sessions))
            del attachment.sessions[oldest]
            if self._routes.get(oldest) is client:
                del self._routes[oldest]
        self._routes[session] = client
        if self._replay.has_sessions:
            missed = self._replay.claim(session, attachment.number)
            if missed is not None:
                self._send_missed(client, missed)

    def _send_missed(self, client: ChannelsClient, missed: Missed) -> None:
        if missed.dropped:
            self._log.warning("%d messages were dropped while no client was connected", missed.dropped)
            text = f"[{missed.dropped} messages were dropped while no client was connected; the backlog was full]\n"
            client.put(self._notice(text, missed.dropped_parent), unlimited=True)
        for message in missed.messages:
            client.put(message, unlimited=True)
        client.flush()
        for message in missed.messages:
            message.forget_frames()

    def _notice(self, text: str, raw_parent: bytes) -> KernelMessage:
        return self._connection.factory.make("iopub", "stream", {"name": "stderr", "text": text}, raw_parent)

    # -- from the kernel -----------------------------------------------------------------------------------------

    def _on_message(self, message: KernelMessage) -> None:
        if message.channel == "iopub":
            if message.msg_type == "iopub_welcome":  # answers our subscription, not a client's
                return
            self._note_activity(message)
            if message.parent.get("session") == self._connection.factory.session:
                return
        if message.size > self._limits.max_message:
            self._refuse_large(message)
            return
        if not self._limits.allow_tracebacks and message.msg_type in {"error", "execute_reply"}:
            message = self._without_traceback(message)
        self._deliver(message)

    def _deliver(self, message: KernelMessage) -> None:
        if message.channel == "iopub":
            self._broadcast(message)
        else:
            self._reply(message)

    def _reply(self, message: KernelMessage) -> None:
        key = key_of(message.parent)
        if message.channel == "stdin":  # a question of the code
            request = self._requests.find(key)
        else:
            request = self._requests.note_reply(key)
            self._inherited.note_reply(key)
            if request is not None and not request.is_idle:
                self._expect_idle()
        self._send_reply(message, request)

    def _send_reply(self, message: KernelMessage, request: Request | None) -> None:
        """Send a reply to the websocket that sent the request; if it is gone, to the client's present or next one.

        Without ``request``, which an earlier gateway has had or which is over, the session in the header tells.
        """
        session = message.parent.get("session")
        session = session if isinstance(session, str) else ""
        recipient = session
        client: ChannelsClient | None = None
        if request is not None and request.session_id:
            asked = self._attachments.get(request.asker)  # type: ignore[call-overload]
            client = asked.client if asked is not None else self._routes.get(request.session_id)
            if not session or self._replay.is_detached(request.session_id):
                recipient = request.session_id
        if client is None and recipient == session:
            client = self._routes.get(session)
        if client is not None:
            client.put(message)
        elif recipient:
            too_large = message.size > self._limits.replay
            for kept in self._substitutes(message, TOO_LARGE_TO_KEEP) if too_large else (message,):
                self._replay.append(kept, recipient)

    def _answer(self, request: Request, ename: str, text: str) -> None:
        """Reply in the kernel's place, by an error."""
        for message in request.failure(self._connection.factory, ename, text, self.kernel_info or {}):
            if message.channel == "iopub":
                self._broadcast(message)
            else:
                self._send_reply(message, request)

    def _refuse_large(self, message: KernelMessage) -> None:
        self._warnings.warn("A message of %d bytes was dropped: it is over the limit", message.size)
        for substitute in self._substitutes(message, "it is over the gateway's limit"):
            self._deliver(substitute)

    def _substitutes(self, message: KernelMessage, reason: str) -> list[KernelMessage]:
        """Return what takes the place of a message that is too large: a notice in its cell, and an error reply."""
        text = f"a {message.msg_type} message of {message.size} bytes was dropped: {reason}"
        substitutes = [self._notice(f"[{text}]\n", message.raw_parent)]
        if message.msg_type.endswith("_reply"):
            error = {"status": "error", "ename": "MessageTooLarge", "evalue": text, "traceback": [text]}
            content = {**error, "execution_count": None} if message.msg_type == "execute_reply" else error
            factory = self._connection.factory
            substitutes.append(factory.make(message.channel, message.msg_type, content, message.raw_parent))
        return substitutes

    def _without_traceback(self, message: KernelMessage) -> KernelMessage:
        raw = message.parts[3]
        if len(raw) > MAX_HEADER_BYTES and message.msg_type != "error" and not message.says_error:
            return message
        try:
            content = decode_object(raw) if len(raw) <= MAX_HEADER_BYTES else {"status": "error"}
        except FrameError:
            content = {"status": "error"}
        if message.msg_type != "error" and content.get("status") != "error":
            return message
        replacement = {"ename": "ExecutionError", "evalue": "Execution error"}
        return message.with_content({**content, **replacement, "traceback": [self._limits.traceback_replacement]})

    def _broadcast(self, message: KernelMessage, *, is_notice: bool = False) -> None:
        if self._replay.is_needed:
            self._replay.append(message, is_notice=is_notice)
        for client in self._clients:
            client.put(message)
        self._batch.append(message)

    def _flush_soon(self) -> None:
        """Flush after the other sockets that are readable now had their turn: one write for all of it."""
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        for client in self._clients:
            client.flush()
        for message in self._batch:
            message.forget_frames()
        self._batch.clear()

    def _note_activity(self, message: KernelMessage) -> None:
        """Follow execution state and activity, by the rules of jupyter_server's ``start_watching_activity``."""
        untracked = self._limits.untracked_message_types
        is_tracked = message.parent.get("msg_type") not in untracked
        if self._is_unproven:
            self._look_for_proof(message)
        if is_tracked or message.msg_type not in untracked or self.execution_state == "busy":
            self._activity = time.time()
        if message.msg_type != "status":
            return
        state = _decoded(message.parts[3]).get("execution_state")
        if not isinstance(state, str):
            return
        key = key_of(message.parent)
        self._requests.note_state(key, state)
        self._inherited.note_state(key, state)
        if state == "idle" and self._inherited.find(key) is not None:
            self._expect_reply()
        if self.execution_state == "restarting":
            return  # the old process ends
        if is_tracked:
            if message.parent.get("msg_type") == "execute_request":
                self._last_cell = message.raw_parent
                if state == "busy" and key and key[0] and not (self._requests.has(key) or self._inherited.has(key)):
                    self._replay.note_served_elsewhere(key[0])
            self._follow_work(message.parent, state)
        elif self.execution_state == "starting" and state != "starting":
            self._set_state("idle")

    def _follow_work(self, parent: dict[str, Any], state: str) -> None:
        """Take over the kernel's state, but ``idle`` only when no other of its shells is busy."""
        if state == "busy":
            self._work.begin(parent)
        elif state == "idle":
            self._work.end(parent)
        else:
            self._work.clear()  # it has just been started
        self._set_state("busy" if self._work else state)

    def _expect_idle(self) -> None:
        """Ensure that a kernel which does not send ``idle`` after a reply does not count as busy for ever."""
        if self._lost_idle_timer is None:
            loop = asyncio.get_running_loop()
            self._lost_idle_timer = loop.call_later(LOST_IDLE_SECONDS, self._end_replied)

    def _end_replied(self) -> None:
        self._lost_idle_timer = None
        for key in self._requests.replied():
            self._work.forget(key)
        if not self._work and self.execution_state == "busy" and not self._is_unproven:
            self._set_state("idle")

    def _expect_reply(self) -> None:
        """Ensure that a client of an earlier gateway does not wait for ever: its reply may be lost."""
        if self._lost_reply_timer is None:
            loop = asyncio.get_running_loop()
            self._lost_reply_timer = loop.call_later(LOST_REPLY_SECONDS, self._answer_unreplied)

    def _answer_unreplied(self) -> None:
        self._lost_reply_timer = None
        for request in self._inherited.take_idle():
            self._answer(request, GATEWAY_RESTARTED, LOST_REPLY)
        self._flush()

    def _look_for_proof(self, message: KernelMessage) -> None:
        """Find out what a kernel that was taken over does: it takes requests in turn, so an answer to ours tells.

        What it says to a request that this gateway has not sent, it says of a cell that was running meanwhile.
        """
        if message.parent.get("msg_type") == "execute_request" and not self._requests.has(key_of(message.parent)):
            self._last_cell = message.raw_parent
            self._has_gap = True
            self._connection.inherit()
            self._end_proof()
            self._tell_gap()
            self._work.begin(message.parent)
            self._set_state("busy")
        elif message.parent.get("msg_type") == "execute_request" or (
            message.parent.get("msg_type") == "kernel_info_request"
            and message.parent.get("session") == self._connection.factory.session
        ):
            self._end_proof()
            self._connection.end_inheritance()
            self._tell_gap()
            for request in self._inherited.take():
                self._answer(request, GATEWAY_RESTARTED, LOST_REPLY)
            self._work.clear()
            self._set_state("idle")

    def _take_for_busy(self) -> None:
        if self._is_unproven:
            self._connection.inherit()
            self._set_state("busy")

    def _tell_gap(self) -> None:
        if self._has_gap:
            self._has_gap = False
            self.tell(GAP_NOTICE)

    def _end_proof(self) -> None:
        self._is_unproven = False
        if self._proof_timer is not None:
            self._proof_timer.cancel()
            self._proof_timer = None

    def _set_state(self, state: str) -> None:
        if state != self.execution_state:
            self.execution_state = state
            self.busy_since = datetime.now(timezone.utc) if state == "busy" else None
            self._changed()

    def _changed(self) -> None:
        for callback in self.on_change:
            callback(self)


class _Attachment:
    """One attached client, the sessions seen on it (oldest first), and where in the log it began.

    One that ``has_waited`` for the kernel's first answer may be attached beside others of its session.
    """

    __slots__ = ("client", "has_spoken", "has_waited", "number", "session_id", "sessions")

    def __init__(self, client: ChannelsClient, number: int, session_id: str, has_waited: bool) -> None:
        self.client = client
        self.number = number
        self.session_id = session_id
        self.has_waited = has_waited
        self.has_spoken = False
        self.sessions: dict[str, None] = {}


def _decoded(raw: Part) -> dict[str, Any]:
    try:
        return decode_header(raw)
    except FrameError:
        return {}
