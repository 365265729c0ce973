"""GET /api/kernelspecs, /api/kernelspecs/<name> and /kernelspecs/<name>/<file>."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from enterprise_gateway.services.kernelspecs.resources import requested_range
from tests.support.embedded import make_app, serving
from tests.support.kernelspecs import write_kernelspec

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20


def for_users(**config):
    return {"process_proxy": {"class_name": "x.Y", "config": config}}


@pytest.fixture
def app():
    write_kernelspec("plain", files={"logo-64x64.png": PNG, "kernel.js": "define()", "secret.txt": "s"})
    write_kernelspec("Mixed.Case-1")
    write_kernelspec("bobby_only", metadata=for_users(authorized_users="bobby,alice"))
    write_kernelspec("listed_only", metadata=for_users(authorized_users=["bob"]))
    write_kernelspec("not_bob", metadata=for_users(unauthorized_users="bob, carol"))

    return only_own_specs(make_app(unauthorized_users={"root"}))


def only_own_specs(app):
    """Leave out the kernelspecs of the machine."""
    app.kernel_spec_manager.ensure_native_kernel = False
    app.kernel_spec_manager.kernel_dirs = [os.path.join(os.environ["JUPYTER_DATA_DIR"], "kernels")]
    return app


@pytest.fixture
async def request_(app):
    async with serving(app) as request:
        yield request


ALL = {"plain", "mixed.case-1", "bobby_only", "listed_only", "not_bob"}


async def test_the_list_has_models_of_all_specs(request_):
    """The list names the default and, for each kernelspec, name, spec and the URLs of its resources."""
    response = await request_("/api/kernelspecs")
    assert response.headers["Content-Type"] == "application/json"
    model = json.loads(response.body)
    assert model["default"] == "python3"
    assert set(model["kernelspecs"]) == ALL
    plain = model["kernelspecs"]["plain"]
    assert plain["name"] == "plain"
    assert set(plain["spec"]) >= {"argv", "env", "display_name", "language", "interrupt_mode", "metadata"}
    assert plain["resources"] == {
        "kernel.js": "/kernelspecs/plain/kernel.js",
        "logo-64x64": "/kernelspecs/plain/logo-64x64.png",
    }


async def test_one_spec(request_):
    """One kernelspec has the model that the list has; its name may be in any case and percent-encoded."""
    listed = (await request_.json("/api/kernelspecs"))["kernelspecs"]
    assert await request_.json("/api/kernelspecs/plain") == listed["plain"]
    encoded = await request_.json("/api/kernelspecs/mixed%2Ecase-1")
    assert encoded == listed["mixed.case-1"]


async def test_an_unknown_spec_is_404(request_):
    """The message names what was asked for."""
    response = await request_("/api/kernelspecs/nothing")
    assert response.code == 404
    assert json.loads(response.body) == {"reason": "Not Found", "message": "Kernel spec nothing not found"}


@pytest.mark.parametrize(
    ("user", "visible"),
    [
        ("bob", ALL - {"bobby_only", "not_bob"}),
        ("bobby", ALL - {"listed_only"}),
        ("alice", ALL - {"listed_only"}),
        ("carol", ALL - {"bobby_only", "listed_only", "not_bob"}),
        ("root", set()),
        ("ali", ALL - {"bobby_only", "listed_only"}),
        ("", ALL),
    ],
)
async def test_the_list_can_be_filtered_by_user(request_, user, visible):
    """Lists of users are sets: ``bob`` is neither ``bobby`` nor hidden by a part of another name."""
    model = await request_.json(f"/api/kernelspecs?user={user}")
    assert set(model["kernelspecs"]) == visible


async def test_global_lists_apply_and_follow_the_options(app, request_):
    """The gateway's authorized users hide kernelspecs that have no list of their own, from the next request on."""
    app.authorized_users = {"dave"}
    assert set((await request_.json("/api/kernelspecs?user=dave"))["kernelspecs"]) == ALL - {
        "bobby_only",
        "listed_only",
    }
    assert set((await request_.json("/api/kernelspecs?user=bobby"))["kernelspecs"]) == {"bobby_only"}
    app.web_app.settings["eg_unauthorized_users"] = {"dave"}
    assert (await request_.json("/api/kernelspecs?user=dave"))["kernelspecs"] == {}


async def test_a_hidden_spec_is_403(request_):
    """Asking for one hidden kernelspec is refused with the sentence of 3.x."""
    response = await request_("/api/kernelspecs/not_bob?user=bob")
    assert response.code == 403
    assert json.loads(response.body)["message"] == "User bob is not authorized to use kernel spec not_bob"


async def test_jupyter_servers_way_to_ask_for_one(request_):
    """Jupyter Server appends the name to the query: ``?user=bob/plain`` is one kernelspec for bob."""
    assert (await request_.json("/api/kernelspecs?user=bob/plain"))["name"] == "plain"
    assert (await request_("/api/kernelspecs?user=bob/not_bob")).code == 403
    assert set(await request_.json("/api/kernelspecs?user=DOMAIN/bob")) == {"default", "kernelspecs"}


async def test_an_unchanged_list_is_304(request_):
    """The entity tag stays the same until something changes, and answers 304 when the client has it."""
    first = await request_("/api/kernelspecs")
    again = await request_("/api/kernelspecs", headers={"If-None-Match": first.headers["Etag"]})
    assert (again.code, again.body) == (304, b"")
    write_kernelspec("new")
    for _ in range(100):
        fresh = await request_("/api/kernelspecs", headers={"If-None-Match": first.headers["Etag"]})
        if fresh.code == 200:
            break
        await asyncio.sleep(0.02)
    assert "new" in json.loads(fresh.body)["kernelspecs"]


async def test_the_default_follows_the_option(app, request_):
    """Changing default_kernel_name changes the cached answer."""
    await request_("/api/kernelspecs")
    app.default_kernel_name = "plain"
    assert (await request_.json("/api/kernelspecs"))["default"] == "plain"


async def test_base_url_prefixes_routes_and_resources(app):
    """Below a base_url, given with or without slashes, the URLs of resources carry it and lead there."""
    prefixed = make_app(base_url="fake/path", auth_token="t")
    async with serving(prefixed) as request:
        headers = {"Authorization": "token t"}
        model = await request.json("/fake/path/api/kernelspecs/plain", headers=headers)
        url = model["resources"]["logo-64x64"]
        assert url == "/fake/path/kernelspecs/plain/logo-64x64.png"
        assert (await request(url, headers=headers)).body == PNG
        assert (await request(url)).code == 401
        assert (await request("/api/kernelspecs", headers=headers)).code == 404


async def test_a_resource_comes_with_its_type(request_):
    """A logo is sent whole, as what it is, with a tag and a date."""
    response = await request_("/kernelspecs/plain/logo-64x64.png")
    assert response.body == PNG
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "Last-Modified" in response.headers
    assert "javascript" in (await request_("/kernelspecs/plain/kernel.js")).headers["Content-Type"]
    again = await request_("/kernelspecs/plain/logo-64x64.png", headers={"If-None-Match": response.headers["Etag"]})
    assert (again.code, again.body) == (304, b"")


async def test_head_has_the_headers_only(request_):
    """HEAD tells size and type without the bytes."""
    response = await request_("/kernelspecs/plain/logo-64x64.png", method="HEAD")
    assert (response.code, response.body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(PNG))


async def test_a_part_of_a_resource(request_):
    """A Range header gets those bytes; one that does not exist gets 416 and the size."""
    path = "/kernelspecs/plain/logo-64x64.png"
    part = await request_(path, headers={"Range": "bytes=2-5"})
    assert (part.code, part.body) == (206, PNG[2:6])
    assert part.headers["Content-Range"] == f"bytes 2-5/{len(PNG)}"
    assert (await request_(path, headers={"Range": "bytes=-3"})).body == PNG[-3:]
    beyond = await request_(path, headers={"Range": f"bytes={len(PNG)}-"})
    assert (beyond.code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(PNG)}")


@pytest.mark.parametrize(
    ("header", "expected"),
    [("", None), ("bytes=0-0", (0, 1)), ("bytes=5-", (5, 10)), ("bytes=-20", (0, 10)), ("bytes=3-2", None),
     ("lines=1-2", None), ("bytes=1-2,4-5", None), ("bytes=8-99", (8, 10))],
)  # fmt: skip
def test_ranges(header, expected):
    """What is no single range of bytes is ignored, as RFC 9110 allows."""
    assert requested_range(header, 10) == expected


@pytest.mark.parametrize(
    "path",
    [
        "../not_bob/kernel.json",
        "..%2fnot_bob%2fkernel.json",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "link",
        "directory/",
        "directory",
        ".",
        "nothing.png",
        "a%00b",
    ],
)
async def test_nothing_outside_the_directory_is_served(app, request_, tmp_path, path):
    """No dots, absolute paths, symbolic links or directory listings lead out of a kernelspec's directory."""
    directory = write_kernelspec("plain")
    (tmp_path / "outside.txt").write_text("outside")
    (directory / "link").symlink_to(tmp_path / "outside.txt")
    (directory / "directory").mkdir()
    response = await request_(f"/kernelspecs/plain/{path}")
    assert response.code in {400, 404}
    assert b"outside" not in response.body
    assert b"root:" not in response.body


async def test_resources_of_unknown_specs_are_404(request_):
    """There is no file of a kernelspec that is not installed."""
    assert (await request_("/kernelspecs/nothing/logo-64x64.png")).code == 404


async def test_other_verbs_are_405(request_):
    """Kernelspecs cannot be changed over HTTP."""
    for path in ("/api/kernelspecs", "/api/kernelspecs/plain", "/kernelspecs/plain/kernel.js"):
        response = await request_(path, method="DELETE")
        assert response.code == 405
        assert json.loads(response.body)["reason"] == "Method Not Allowed"
