"""HTTP routes of kernelspecs: the list, a single one, and its files."""

from __future__ import annotations

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from tornado import web

from ...base.handlers import GatewayHandler
from ...core.errors import BrokenKernelSpecError
from ...core.offload import offload
from .kernelspec_cache import KernelSpecCache
from .listing import SpecListing, kernelspec_model, user_rules
from .resources import read_resource, requested_range
from .snapshot import CacheItem, resource_files

kernel_name_regex = r"(?P<kernel_name>[\w\.\-%]+)"


class KernelSpecHandler(GatewayHandler):
    """The common base of the kernelspec handlers."""

    @property
    def kernel_spec_cache(self) -> KernelSpecCache:
        """The cache of kernelspecs."""
        return self.settings["kernel_spec_cache"]

    async def find(self, kernel_name: str) -> KernelSpec:
        """Return the kernelspec of that name, or answer 404; raise BrokenKernelSpecError if it cannot be used."""
        try:
            return await self.kernel_spec_cache.get_kernel_spec(kernel_name)
        except BrokenKernelSpecError:
            raise
        except NoSuchKernel:
            raise web.HTTPError(404, "Kernel spec %s not found", kernel_name) from None

    async def finish_one(self, kernel_name: str, user: str) -> None:
        """Answer with one kernelspec's model, unless it is hidden from ``user``."""
        kernel_spec = await self.find(kernel_name)
        item = CacheItem(spec=kernel_spec.to_dict(), resource_dir=kernel_spec.resource_dir)
        if user and not user_rules(item, *self.user_lists).permits(user):
            raise web.HTTPError(403, "User %s is not authorized to use kernel spec %s", user, kernel_name)
        files = await offload(resource_files, kernel_spec.resource_dir)
        self.finish_json(kernelspec_model(kernel_name, item, files, self.base_url))

    @property
    def user_lists(self) -> tuple[set[str], set[str]]:
        """The gateway's authorized and unauthorized users."""
        return self.settings.get("eg_authorized_users", set()), self.settings.get("eg_unauthorized_users", set())


class MainKernelSpecHandler(KernelSpecHandler):
    """The list of kernelspecs."""

    etag = ""

    async def get(self) -> None:
        """Answer with all kernelspecs, or with those that the argument ``user`` may start."""
        user = self.get_argument("user", "")
        snapshot = await self.kernel_spec_cache.snapshot()
        # Jupyter Server asks for one kernelspec as /api/kernelspecs?user=bob/python3.
        asking, _, kernel_name = user.rpartition("/")
        if asking and kernel_name.lower() in snapshot.items:
            await self.finish_one(kernel_name, asking)
            return
        listing: SpecListing = self.settings.setdefault("kernel_spec_listing", SpecListing())
        default = self.kernel_manager.default_kernel_name
        if user:
            lists = self.user_lists
            answer = listing.visible(
                snapshot, self.base_url, default, lambda item: user_rules(item, *lists).permits(user)
            )
        else:
            answer = listing.full(snapshot, self.base_url, default)
        self.etag = answer.etag
        self.finish(answer.body)

    def compute_etag(self) -> str:
        """Return the entity tag that was computed with the response; called by tornado."""
        return self.etag


class OneKernelSpecHandler(KernelSpecHandler):
    """One kernelspec."""

    async def get(self, kernel_name: str) -> None:
        """Answer with the kernelspec, unless it is hidden from the argument ``user``."""
        await self.finish_one(kernel_name, self.get_argument("user", ""))


class KernelSpecResourceHandler(KernelSpecHandler):
    """The files of a kernelspec: logos, kernel.js and the like."""

    etag = ""

    async def get(self, kernel_name: str, path: str) -> None:
        """Answer with the file, or with the part that a Range header requests."""
        kernel_spec = await self.find(kernel_name)
        resource = await offload(read_resource, kernel_spec.resource_dir, path)
        if resource is None:
            raise web.HTTPError(404, "Kernel spec %s has no file %s", kernel_name, path)
        self.etag = resource.etag
        self.set_header("Content-Type", resource.content_type)
        self.set_header("Last-Modified", resource.last_modified)
        self.set_header("Accept-Ranges", "bytes")
        self.set_etag_header()
        if self.check_etag_header():
            self.set_status(304)
            return
        size = len(resource.content)
        try:
            wanted = requested_range(self.request.headers.get("Range", ""), size)
        except ValueError:
            self.set_status(416)
            self.set_header("Content-Range", f"bytes */{size}")
            return
        start, end = wanted or (0, size)
        if wanted:
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.set_header("Content-Length", str(end - start))
        self.write(resource.content[start:end])

    def compute_etag(self) -> str | None:
        """Return the entity tag of the whole file, or None for an error; called by tornado."""
        return self.etag or None


default_handlers = [
    (r"/api/kernelspecs", MainKernelSpecHandler),
    (rf"/api/kernelspecs/{kernel_name_regex}", OneKernelSpecHandler),
    (rf"/kernelspecs/{kernel_name_regex}/(?P<path>.+)", KernelSpecResourceHandler),
]
