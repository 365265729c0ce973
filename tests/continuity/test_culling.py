"""Culling: its rules, and who is told; with the test's own clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from enterprise_gateway.core.culling import CullPolicy, KernelUse, unusable_entries
from enterprise_gateway.services.kernels.remotemanager import RemoteKernelManager
from tests.conftest import ExpectLog
from tests.support.gateway import Gateway, running_gateway
from tests.support.kernelspecs import PYTHON_ARGV, write_kernelspec

from .rolling import begin, eventually

SQL_STORE = "enterprise_gateway.services.sessions.kernelsessionmanager.SQLKernelSessionManager"
NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)


def use(idle: float = 0, age: float = 0, busy: float | None = None, connections: int = 0, state: str = "") -> KernelUse:
    """Return the activity of a kernel, in seconds before NOW."""
    ago = {name: NOW - timedelta(seconds=value) for name, value in (("idle", idle), ("age", max(age, idle)))}
    busy_since = None if busy is None else NOW - timedelta(seconds=busy)
    return KernelUse(state or ("idle" if busy is None else "busy"), connections, ago["age"], ago["idle"], busy_since)


@pytest.mark.parametrize(
    ("policy", "kernel", "reason"),
    [
        (CullPolicy(), use(idle=1e9), None),
        (CullPolicy(idle_timeout=-1), use(idle=1e9), None),
        (CullPolicy(idle_timeout=60), use(idle=59), None),
        (CullPolicy(idle_timeout=60), use(idle=61), "it has been idle for more than 60 seconds"),
        (CullPolicy(idle_timeout=60), use(idle=61, connections=1), None),
        (CullPolicy(idle_timeout=60, connected=True), use(idle=61, connections=1), "it has been idle"),
        (CullPolicy(idle_timeout=60), use(idle=61, busy=10), None),
        (CullPolicy(idle_timeout=60, busy=True), use(idle=61, busy=10), "it has been idle"),
        (CullPolicy(max_age=100), use(age=99), None),
        (CullPolicy(max_age=100), use(age=101, busy=5, connections=3), "it is older than 100 seconds"),
        (CullPolicy(busy_timeout=30), use(busy=29, connections=1), None),
        (CullPolicy(busy_timeout=30), use(busy=31, connections=1), "it has been busy for more than 30 seconds"),
        (CullPolicy(), use(state="dead"), "it is dead"),
        (CullPolicy(), use(state="dead", connections=1), None),
    ],
)
def test_each_rule_holds_on_both_sides_of_its_limit(policy: CullPolicy, kernel: KernelUse, reason: str | None) -> None:
    """Idle, connected, busy, maximum age, busy limit, dead: each on both sides of its limit."""
    found = policy.reason(kernel, NOW)
    assert found == reason or (reason is not None and found is not None and found.startswith(reason))


def test_a_kernelspec_overrides_the_rules() -> None:
    """Its metadata's ``cull_`` entries override the options, one by one."""
    policy = CullPolicy(idle_timeout=60, max_age=5).for_spec({"cull_idle_timeout": 0, "cull_busy": True, "other": 1})
    assert policy == CullPolicy(idle_timeout=0, busy=True, max_age=5)


@pytest.mark.parametrize(
    ("entry", "value", "used"),
    [
        ("idle_timeout", "600", 600),
        ("max_age", " 1.5 ", 1.5),
        ("idle_timeout", None, 60),
        ("busy", "true", True),
        ("busy", "False", False),
        ("busy", 1, True),
        ("connected", None, False),
    ],
)
def test_numbers_and_switches_in_a_kernelspec_may_be_text(entry: str, value: object, used: object) -> None:
    """Numbers and switches may be written as text, and null is no entry."""
    metadata = {f"cull_{entry}": value}
    assert unusable_entries(metadata) == []
    assert getattr(CullPolicy(idle_timeout=60).for_spec(metadata), entry) == used


@pytest.mark.parametrize(
    ("entry", "value", "wanted"),
    [
        ("idle_timeout", "ten minutes", "a number of seconds"),
        ("idle_timeout", True, "a number of seconds"),
        ("idle_timeout", [600], "a number of seconds"),
        ("idle_timeout", "nan", "a number of seconds"),
        ("max_age", float("inf"), "a number of seconds"),
        ("busy", "yes", "true or false"),
        ("busy", 2, "true or false"),
        ("connected", {}, "true or false"),
    ],
)
def test_invalid_entries_of_a_kernelspec_are_logged_and_ignored(entry: str, value: object, wanted: str) -> None:
    """The option counts instead, and so do the kernelspec's other entries."""
    metadata = {f"cull_{entry}": value, "cull_busy_timeout": 9}
    assert unusable_entries(metadata) == [f"cull_{entry} must be {wanted}, not {value!r}"]
    assert CullPolicy(idle_timeout=60).for_spec(metadata) == CullPolicy(idle_timeout=60, busy_timeout=9)


@asynccontextmanager
async def culling_gateway(**options: Any) -> AsyncIterator[tuple[Gateway, Any]]:
    """Run a gateway that culls only when told to, and whose culler's clock is moved by the test."""
    config = {"RemoteMappingKernelManager": {"cull_interval": 3600, **options}}
    async with running_gateway(config={"EnterpriseGatewayApp": {"list_kernels": True}, **config}) as gateway:
        yield gateway, gateway.app.kernel_manager.culler


def later(seconds: float) -> Any:
    """Return a clock that is ahead."""
    return lambda: datetime.now(timezone.utc) + timedelta(seconds=seconds)


async def test_clients_are_warned_before_and_informed_when_it_happens(expect_log: ExpectLog) -> None:
    """A warning in time, then the reason as text and with a dead status; the websocket's closing has it as well."""
    async with culling_gateway(cull_idle_timeout=600, cull_connected=True, cull_warning=60) as (gateway, culler):
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        await socket.execute("1 + 1")

        culler.clock = later(545)
        await culler.cull_kernels()
        await culler.cull_kernels()
        (warning,) = await socket.receive_until("stream")
        assert "will be culled within 60 seconds unless it is used" in warning["content"]["text"]

        culler.clock = later(605)
        with expect_log("Culling kernel .*: it has been idle for more than 600 seconds"):
            await culler.cull_kernels()
        messages = []
        while (message := await socket.receive()) is not None:
            messages.append(message)
        texts = [message["content"]["text"] for message in messages if message["msg_type"] == "stream"]
        assert len(texts) == 1, "warned once"
        assert "was culled: it has been idle for more than 600 seconds" in texts[0]
        dead = [message["content"] for message in messages if message["msg_type"] == "status"][-1]
        assert (dead["execution_state"], "was culled" in dead["reason"]) == ("dead", True)
        assert socket.connection.close_code == 1001
        assert socket.connection.close_reason == "the kernel was culled: it has been idle for more than 600 seconds"
        assert await gateway.call("/api/kernels") == []


async def test_a_kernel_that_is_used_again_is_warned_again() -> None:
    """Activity after a warning cancels the culling; the next idle time has a warning of its own."""
    async with culling_gateway(cull_idle_timeout=600, cull_connected=True, cull_warning=60) as (gateway, culler):
        kernel_id = await gateway.start_kernel()
        socket = await gateway.websocket(kernel_id)
        for _ in range(2):
            await socket.execute("1 + 1")
            culler.clock = later(0)
            await culler.cull_kernels()
            culler.clock = later(545)
            await culler.cull_kernels()
            (warning,) = await socket.receive_until("stream")
            assert "will be culled" in warning["content"]["text"]


async def test_a_busy_kernel_is_culled_by_the_busy_limit_only(expect_log: ExpectLog) -> None:
    """An endless cell keeps a kernel from being idle, but not from the busy limit of its kernelspec."""
    write_kernelspec("limited", argv=PYTHON_ARGV, metadata={"cull_busy_timeout": 1000})
    async with culling_gateway(cull_idle_timeout=600) as (gateway, culler):
        kernel_id = await gateway.start_kernel("limited")
        socket = await gateway.websocket(kernel_id)
        await socket.execute("1")
        await begin(socket, "import time; time.sleep(3600)")
        await eventually(lambda: gateway.app.kernel_manager.get_kernel(kernel_id).execution_state == "busy")
        culler.clock = later(900)
        await culler.cull_kernels()
        assert [model["execution_state"] for model in await gateway.call("/api/kernels")] == ["busy"]
        culler.clock = later(1001)
        with expect_log("Culling kernel .*: it has been busy for more than 1000 seconds"):
            await culler.cull_kernels()
        assert await gateway.call("/api/kernels") == []
        while await socket.receive() is not None:
            pass


@pytest.mark.parametrize("long_on_subshell", [False, True], ids=["main", "subshell"])
async def test_a_kernel_is_not_culled_while_one_of_its_shells_works(
    long_on_subshell: bool, expect_log: ExpectLog
) -> None:
    """The end of a later request on another shell does not make a kernel idle; the end of the long one does."""
    async with culling_gateway(cull_interval=1, cull_connected=True) as (gateway, _):
        kernels = gateway.app.kernel_manager
        kernel_id = await gateway.start_kernel()
        kernel = kernels.get_kernel(kernel_id)
        socket = await gateway.websocket(kernel_id)
        await socket.execute("import threading; go = threading.Event()")
        if "kernel subshells" not in kernel.channels.kernel_info.get("supported_features", ()):
            pytest.skip("not applicable: ipykernel 6 has no subshells")
        created = await socket.send("create_subshell_request", channel="control")
        reply = (await socket.receive_until("create_subshell_reply", parent=created))[-1]
        main, subshell = {}, {"subshell_id": reply["content"]["subshell_id"]}
        long, short = (subshell, main) if long_on_subshell else (main, subshell)
        await begin(socket, "go.wait(60)", **long)
        assert (await socket.execute("6 * 7", **short))[0] == "42"
        kernels.cull_idle_timeout = 1
        await asyncio.sleep(3.5)  # the culler checks three times
        assert kernels.list_kernel_ids() == [kernel_id]
        assert kernel.execution_state == "busy"
        with expect_log(f"Culling kernel {kernel_id}.*: it has been idle for more than 1 seconds"):
            await socket.execute("go.set()", **short)
            while await socket.receive() is not None:
                pass
        assert kernels.list_kernel_ids() == []


async def test_the_culler_checks_periodically(expect_log: ExpectLog) -> None:
    """Without being told, the culler checks every cull_interval seconds."""
    async with culling_gateway(cull_interval=1, cull_max_age=0.5) as (gateway, _):
        with expect_log("Culling kernel .*: it is older than 0.5 seconds"):
            await gateway.start_kernel()
            await eventually(lambda: not gateway.app.kernel_manager.list_kernel_ids(), 15)


async def test_a_kernelspec_with_invalid_metadata_does_not_prevent_culling(expect_log: ExpectLog) -> None:
    """One warning names it, however often the culler looks; all kernels are culled by the rules they have."""
    write_kernelspec("nonsense", metadata={"cull_idle_timeout": "soon"})
    write_kernelspec("text", metadata={"cull_idle_timeout": "600"})
    async with culling_gateway(cull_idle_timeout=1000) as (gateway, culler):
        nonsense, text, plain = [await gateway.start_kernel(name) for name in ("nonsense", "text", "python3")]
        culler.clock = later(605)
        with expect_log("kernelspec|Culling") as logged:
            await culler.cull_kernels()
            await culler.cull_kernels()
        refused, culled = [record.getMessage() for record in logged]
        assert "metadata of kernelspec nonsense is ignored: cull_idle_timeout must be" in refused
        assert culled.startswith(f"Culling kernel {text}")
        culler.clock = later(1005)
        with expect_log("Culling kernel") as logged:
            await culler.cull_kernels()
        assert {record.getMessage().split()[2] for record in logged} == {nonsense, plain}


class TroublesomeKernelManager(RemoteKernelManager):
    """A manager of a third party whose ``last_activity`` and ``detach`` fail for kernels named ``troublesome``.

    Its ``execution_state`` does for those named ``stateless``.
    """

    @property
    def execution_state(self) -> str:
        """What the kernel does."""
        if self.kernel_name == "stateless":
            raise LookupError("no state")
        return super().execution_state

    @property
    def last_activity(self) -> datetime:
        """When the kernel was used last."""
        if self.kernel_name == "troublesome":
            raise LookupError("no idea")
        return super().last_activity

    async def detach(self) -> None:
        """Leave the kernel running."""
        await super().detach()
        if self.kernel_name == "troublesome":
            raise LookupError("never")


TROUBLESOME = f"{__name__}.TroublesomeKernelManager"


async def test_a_kernel_that_fails_does_not_keep_others_from_being_culled_and_listed(expect_log: ExpectLog) -> None:
    """Its error is logged with its id; the others are listed, culled and stopped."""
    write_kernelspec("troublesome")
    async with culling_gateway(cull_idle_timeout=600, kernel_manager_class=TROUBLESOME) as (gateway, culler):
        kernels = gateway.app.kernel_manager
        ids = [await kernels.start_kernel(kernel_name=name) for name in ("python3", "troublesome", "python3")]
        with expect_log(f"Kernel {ids[1]} cannot be listed"):
            assert [model["id"] for model in await gateway.call("/api/kernels")] == [ids[0], ids[2]]
        culler.clock = later(605)
        with expect_log(f"Culling|Kernel {ids[1]} could not be checked") as logged:
            await culler.cull_kernels()
        assert len(logged) == 3
        assert kernels.list_kernel_ids() == [ids[1]]


async def test_a_kernel_that_cannot_be_detached_does_not_prevent_detaching_others(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """A stop that leaves kernels running ends cleanly, and the other kernel is found as it was left."""
    write_kernelspec("troublesome")
    gateway_options = {"availability_mode": "standalone", "list_kernels": True}
    config = {
        "EnterpriseGatewayApp": gateway_options,
        "RemoteMappingKernelManager": {"kernel_manager_class": TROUBLESOME},
        "FileKernelSessionManager": {"persistence_root": str(tmp_path)},
    }
    with expect_log("did not end cleanly|cannot be listed"):
        async with running_gateway(config=config) as gateway:
            ids = [await gateway.app.kernel_manager.start_kernel(kernel_name=n) for n in ("troublesome", "python3")]
            await (await gateway.websocket(ids[1])).execute("x = 42")
    del config["RemoteMappingKernelManager"]
    gateway_options["keep_kernels_on_stop"] = False
    async with running_gateway(config=config) as gateway:
        assert {model["id"] for model in await gateway.call("/api/kernels")} == set(ids)
        assert (await (await gateway.websocket(ids[1])).execute("print(x)"))[0].strip() == "42"


async def test_a_kernel_that_fails_does_not_keep_others_from_being_started(expect_log: ExpectLog) -> None:
    """One that cannot tell whether it is dead is counted under the limits, and no more than that."""
    write_kernelspec("stateless")
    async with culling_gateway(kernel_manager_class=TROUBLESOME) as (gateway, _):
        kernels = gateway.app.kernel_manager
        gateway.app.max_kernels = 2
        stateless = await kernels.start_kernel(kernel_name="stateless")
        with expect_log(f"Kernel {stateless} is counted as running"):
            await gateway.start_kernel()
            await gateway.call("/api/kernels", "POST", {"name": "python3"}, status=403)


@pytest.mark.parametrize("name", ["troublesome", "stateless"])
async def test_a_kernel_that_fails_does_not_keep_others_from_being_recorded(
    name: str, tmp_path: Path, expect_log: ExpectLog
) -> None:
    """The activity of the others is recorded each time; the error is logged with the kernel's id."""
    write_kernelspec(name)
    config = {
        "EnterpriseGatewayApp": {"availability_mode": "standalone", "keep_kernels_on_stop": False},
        "RemoteMappingKernelManager": {"kernel_manager_class": TROUBLESOME},
        "FileKernelSessionManager": {"persistence_root": str(tmp_path)},
    }

    def noted(kernel_id: str) -> Any:
        path = tmp_path / "kernel_sessions" / f"{kernel_id}.json"
        return json.loads(path.read_bytes())[kernel_id]["relay"]["execution_state"]

    with expect_log("activity of kernel .* could not be recorded|is counted as running") as logged:
        async with running_gateway(config=config) as gateway:
            kernels = gateway.app.kernel_manager
            kernels.parts.records.note_seconds = 0.2
            failing, plain = [await kernels.start_kernel(kernel_name=each) for each in (name, "python3")]
            socket = await gateway.websocket(plain)
            for _ in range(2):
                await begin(socket, "import time; time.sleep(1)")
                await eventually(lambda: noted(plain) == "busy")
                await socket.receive_until("execute_reply")
                await eventually(lambda: noted(plain) == "idle")
    told = [record.getMessage() for record in logged if "counted" not in record.getMessage()]
    assert {sentence.split()[4] for sentence in told} == {failing}


@pytest.mark.parametrize("name", ["troublesome", "stateless"])
async def test_a_kernel_that_fails_does_not_end_the_heartbeat_of_a_replica(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """The replica goes on to look after all its kernels; the error is logged once, with the kernel's id."""
    write_kernelspec(name)
    monkeypatch.setenv("EG_SESSION_DATABASE_URL", f"sqlite:///{tmp_path / 'store.sqlite'}")
    config = {
        "EnterpriseGatewayApp": {
            "availability_mode": "replication",
            "keep_kernels_on_stop": False,
            "kernel_session_manager_class": SQL_STORE,
        },
        "RemoteMappingKernelManager": {"kernel_manager_class": TROUBLESOME},
        "SQLKernelSessionManager": {"lease_seconds": 1.5},
    }
    with expect_log("cannot be published to other replicas|cannot be listed") as logged:
        async with running_gateway(config=config) as gateway:
            kernels = gateway.app.kernel_manager
            ids = [await kernels.start_kernel(kernel_name=each) for each in (name, "python3")]
            socket = await gateway.websocket(ids[1])
            await begin(socket, "import time; time.sleep(3)")
            await asyncio.sleep(2)
            assert [kernels.replicas.holds(kernel_id) for kernel_id in ids] == [True, True]
            stored = await kernels.kernel_session_manager.fetch_kernels(kernels.replicas.owner)
            assert stored[ids[1]].execution_state == "busy"
            assert [model["id"] for model in await kernels.models()] == [ids[1]]
            await socket.receive_until("execute_reply")
    told, listed = [record.getMessage() for record in logged]
    assert told.startswith(f"The activity of kernel {ids[0]} cannot be published")
    assert listed == f"Kernel {ids[0]} cannot be listed"
