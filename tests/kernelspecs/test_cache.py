"""The kernelspec cache is as fresh as the disk, whatever happens there, and counts what it did not know."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time

import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from enterprise_gateway.core.offload import offload
from enterprise_gateway.services.kernelspecs import KernelSpecCache
from enterprise_gateway.services.kernelspecs.snapshot import fingerprint
from tests.support.kernelspecs import write_kernelspec


def make_manager(*directories):
    manager = KernelSpecManager(ensure_native_kernel=False)
    manager.kernel_dirs = [str(directory / "kernels") for directory in directories]
    return manager


@pytest.fixture(params=[True, False], ids=["cached", "uncached"])
def enabled(request):
    return request.param


@pytest.fixture
def manager(tmp_path):
    for name in ("test1", "test2", "Test3"):
        write_kernelspec(name, directory=tmp_path)
    return make_manager(tmp_path, tmp_path / "other")


@pytest.fixture
def cache(manager, enabled):
    cache = KernelSpecCache(kernel_spec_manager=manager, cache_enabled=enabled)
    yield cache
    cache.stop()


async def eventually(condition, timeout=3.0):
    """Wait until ``condition`` holds: reports of changes come from another thread."""
    end = time.monotonic() + timeout
    while not await condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.02)


async def test_all_specs_are_found(cache, enabled):
    """All kernelspecs are listed under lower-case names, and kept only when caching is on."""
    assert set(await cache.get_all_specs()) == {"test1", "test2", "test3"}
    assert set(cache.cache_items) == ({"test1", "test2", "test3"} if enabled else set())
    assert cache.cache_misses == 0


async def test_names_ignore_case(cache):
    """A kernelspec is found whatever the case of its name."""
    spec = await cache.get_kernel_spec("TEST3")
    assert isinstance(spec, KernelSpec)
    assert spec.display_name == "Test3"
    assert spec.resource_dir.endswith("Test3")


async def test_unknown_names_raise(cache, enabled):
    """An unknown name raises NoSuchKernel and, when caching, counts as a miss."""
    with pytest.raises(NoSuchKernel):
        await cache.get_kernel_spec("nothing")
    assert cache.cache_misses == (1 if enabled else 0)


@pytest.mark.parametrize("name", ["../x", "a b", "%", "é", "x\n[E 2026-01-01 EnterpriseGatewayApp] forged"])
async def test_names_that_no_kernelspec_can_have_are_not_logged(cache, manager, name, caplog):
    """Anybody may send them: they raise like unknown names and leave nothing in the log."""
    manager.log = logging.getLogger("enterprise_gateway.specs")
    with pytest.raises(NoSuchKernel):
        await cache.get_kernel_spec(name)
    assert caplog.messages == []


async def test_a_new_place_is_one_miss(cache, manager, enabled, tmp_path):
    """A kernelspec in a directory that held none is a miss once; then that directory is observed."""
    assert cache.observed_dirs == ({str(tmp_path / "kernels")} if enabled else set())
    await cache.get_all_specs()
    write_kernelspec("added", directory=tmp_path / "other")
    await cache.get_kernel_spec("added")
    await cache.get_kernel_spec("added")
    assert cache.cache_misses == (1 if enabled else 0)
    assert len(cache.observed_dirs) == (2 if enabled else 0)
    write_kernelspec("added2", directory=tmp_path / "other")

    async def is_listed():
        return "added2" in await cache.get_all_specs()

    await eventually(is_listed)
    await cache.get_kernel_spec("added2")
    assert cache.cache_misses == (1 if enabled else 0)


async def test_changes_removals_and_renames_show(cache, tmp_path):
    """An edited, a removed and a renamed kernelspec are what the next answers say."""
    await cache.get_all_specs()
    kernels = tmp_path / "kernels"
    write_kernelspec("test1", directory=tmp_path, display_name="Edited")
    shutil.rmtree(kernels / "test2")
    (kernels / "Test3").rename(kernels / "moved")

    async def is_fresh():
        specs = await cache.get_all_specs()
        return set(specs) == {"test1", "moved"} and specs["test1"]["spec"]["display_name"] == "Edited"

    await eventually(is_fresh)
    with pytest.raises(NoSuchKernel):
        await cache.get_kernel_spec("test2")


async def test_what_no_event_reports_shows_by_the_files_times(manager, tmp_path):
    """A change behind a symbolic link, which the observer cannot see, shows by the files' times."""
    outside = write_kernelspec("linked", directory=tmp_path / "outside")
    (tmp_path / "kernels" / "linked").symlink_to(outside)
    cache = KernelSpecCache(kernel_spec_manager=manager)
    try:
        assert (await cache.get_kernel_spec("linked")).display_name == "linked"
        await asyncio.sleep(0.2)
        write_kernelspec("linked", directory=tmp_path / "outside", display_name="New")

        async def is_fresh():
            return (await cache.get_kernel_spec("linked")).display_name == "New"

        await eventually(is_fresh, timeout=5)
    finally:
        await offload(cache.stop)


class WithoutWatches(KernelSpecCache):
    """A cache on a system whose watches are used up."""

    def _start_observer(self):
        raise OSError(24, "inotify instance limit reached")


async def test_without_observer_every_answer_is_fresh(manager, tmp_path, expect_log):
    """When the system has no watches left, that is said once, and files' times are compared before each answer."""
    cache = WithoutWatches(kernel_spec_manager=manager)
    with expect_log("The system does not report changes") as told:
        try:
            await cache.get_all_specs()
            assert (cache.observer, cache.observed_dirs) == (None, set())
            for number in range(5):
                write_kernelspec("test1", directory=tmp_path, display_name=f"Edit {number}")
                assert (await cache.get_kernel_spec("test1")).display_name == f"Edit {number}"
        finally:
            await offload(cache.stop)
    assert len(told) == 1


async def test_the_same_specs_keep_their_generation(manager, tmp_path):
    """Answers made from a generation stay usable until something changes; resource files count."""
    cache = KernelSpecCache(kernel_spec_manager=manager)
    try:
        first = (await cache.snapshot()).generation
        await asyncio.sleep(0.6)
        assert (await cache.snapshot()).generation == first
        (tmp_path / "kernels" / "test1" / "logo-64x64.png").write_bytes(b"png")

        async def is_new():
            snapshot = await cache.snapshot()
            return snapshot.generation != first and snapshot.resources["test1"] == ("logo-64x64.png",)

        await eventually(is_new)
    finally:
        await offload(cache.stop)


async def test_reading_is_no_change(manager):
    """The observer reports our own reading of the files; that must not make us read them again and again."""
    cache = KernelSpecCache(kernel_spec_manager=manager)
    try:
        await cache.get_all_specs()
        await asyncio.sleep(0.3)
        assert cache._stale is False
    finally:
        await offload(cache.stop)


async def test_the_allow_list_hides_and_refuses(cache, manager):
    """A kernelspec that allowed_kernelspecs does not name is neither listed nor found; a change applies at once."""
    await cache.get_all_specs()
    manager.allowed_kernelspecs = {"test1"}
    assert set(await cache.get_all_specs()) == {"test1"}
    with pytest.raises(NoSuchKernel):
        await cache.get_kernel_spec("test2")
    manager.allowed_kernelspecs = set()
    assert (await cache.get_kernel_spec("test2")).display_name == "test2"


async def test_broken_specs_do_not_hide_others(tmp_path, expect_log):
    """A kernel.json that is not JSON is skipped with a warning; the rest is listed."""
    write_kernelspec("good", directory=tmp_path)
    (write_kernelspec("bad", directory=tmp_path) / "kernel.json").write_text("{")
    manager = make_manager(tmp_path)
    cache = KernelSpecCache(kernel_spec_manager=manager)
    try:
        with expect_log("Error loading kernelspec 'bad'"):
            assert set(await cache.get_all_specs()) == {"good"}
    finally:
        await offload(cache.stop)


class AsyncManager:
    """A third-party manager whose methods are coroutines."""

    async def get_kernel_spec(self, name):
        if name != "remote":
            raise NoSuchKernel(name)
        return KernelSpec(argv=["x"], display_name="Remote", resource_dir="/nowhere")

    async def get_all_specs(self):
        spec = await self.get_kernel_spec("remote")
        return {"remote": {"spec": spec.to_dict(), "resource_dir": spec.resource_dir}}


async def test_managers_with_coroutines_work():
    """Kernelspec managers of third parties may be asynchronous; they are asked every time."""
    cache = KernelSpecCache(kernel_spec_manager=AsyncManager())
    assert (await cache.get_kernel_spec("remote")).display_name == "Remote"
    assert set(await cache.get_all_specs()) == {"remote"}
    with pytest.raises(NoSuchKernel):
        await cache.get_kernel_spec("other")
    assert cache.cache_items == {}


class FindsElsewhere(KernelSpecManager):
    """A third-party manager that finds kernelspecs in places of its own."""

    names = ("conda-a",)

    def find_kernel_specs(self):
        return dict.fromkeys(self.names, "/nowhere")

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(argv=["x"], display_name=kernel_name, resource_dir="/nowhere")


async def test_managers_that_find_elsewhere_are_asked_again(tmp_path):
    """Where the disk does not tell, kernelspecs are read again when a request comes."""
    manager = FindsElsewhere()
    assert fingerprint(manager, []) is None
    cache = KernelSpecCache(kernel_spec_manager=manager)
    assert set(await cache.get_all_specs()) == {"conda-a"}
    manager.names = ("conda-a", "conda-b")
    assert set(await cache.get_all_specs()) == {"conda-a", "conda-b"}
    await offload(cache.stop)


async def test_many_requests_share_one_scan(tmp_path):
    """A hundred requests at once read the disk once."""
    reads = []

    class Counting(KernelSpecManager):
        def get_all_specs(self):
            reads.append(1)
            time.sleep(0.05)
            return {}

    cache = KernelSpecCache(kernel_spec_manager=Counting())
    await asyncio.gather(*(cache.get_all_specs() for _ in range(100)))
    assert len(reads) == 1
    await offload(cache.stop)


def test_the_environment_switches_it(monkeypatch, manager):
    """EG_KERNELSPEC_CACHE_ENABLED is the default of cache_enabled, which is on."""
    assert KernelSpecCache(kernel_spec_manager=manager).cache_enabled is True
    monkeypatch.setenv("EG_KERNELSPEC_CACHE_ENABLED", "false")
    assert KernelSpecCache(kernel_spec_manager=manager).cache_enabled is False


def test_it_is_a_singleton_for_those_who_want_one(manager):
    """``KernelSpecCache.instance(kernel_spec_manager=…)`` works as upstream's does."""
    try:
        first = KernelSpecCache.instance(kernel_spec_manager=manager, cache_enabled=True)
        assert KernelSpecCache.instance() is first
        assert set(first.cache_items) == {"test1", "test2", "test3"}
        first.stop()
    finally:
        KernelSpecCache.clear_instance()


def test_an_edit_in_place_is_a_different_fingerprint(tmp_path):
    """Equal size and equal time to the second do not hide an edit."""
    directory = write_kernelspec("a", directory=tmp_path)
    manager = make_manager(tmp_path)
    old = time.time() - 100
    kernel_json = directory / "kernel.json"
    for path in (tmp_path / "kernels", directory, kernel_json):
        os.utime(path, (old, old))
    time.sleep(0.15)
    before = fingerprint(manager, [str(directory)])
    assert before == fingerprint(manager, [str(directory)]) is not None
    text = kernel_json.read_text()
    kernel_json.write_text(text.replace('"a"', '"b"'))
    assert json.loads(kernel_json.read_text())["display_name"] == "b"
    os.utime(kernel_json, (old, old))
    assert fingerprint(manager, [str(directory)]) != before
