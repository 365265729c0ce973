"""Responses about kernelspecs, serialized once and cached until the kernelspecs change."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from ...core.authorization import UserRules
from .snapshot import CacheItem, Snapshot

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A JSON document and its entity tag."""

    body: bytes
    etag: str


def kernelspec_model(name: str, item: CacheItem, resources: Iterable[str], base_url: str) -> dict[str, Any]:
    """Return the REST model of one kernelspec; its resources are URLs below ``base_url``."""
    spec = {key: value for key, value in item["spec"].items() if value or key != "kernel_protocol_version"}
    urls = {}
    for file in resources:
        key = file if file in {"kernel.js", "kernel.css"} else file.rpartition(".")[0] or file
        urls[key] = f"{base_url}kernelspecs/{quote(name)}/{quote(file)}"
    return {"name": name, "spec": spec, "resources": urls}


def user_rules(item: CacheItem, authorized: Iterable[str], unauthorized: Iterable[str]) -> UserRules:
    """Return who may see the kernelspec: its own lists combined with the gateway's."""
    proxy = item["spec"].get("metadata", {}).get("process_proxy")
    config = proxy.get("config") if isinstance(proxy, Mapping) else None
    return UserRules.for_spec(config if isinstance(config, Mapping) else {}, authorized, unauthorized)


class SpecListing:
    """Serializes the list of kernelspecs, and caches it until they, the default or ``base_url`` change."""

    def __init__(self) -> None:
        self._models_of: tuple[int, str] | None = None
        self._models: dict[str, bytes] = {}
        self._full_of: tuple[int, str, str] | None = None
        self._full = Answer(b"", "")

    def full(self, snapshot: Snapshot, base_url: str, default: str) -> Answer:
        """Return the list of all kernelspecs."""
        key = (snapshot.generation, base_url, default)
        if key != self._full_of:
            models = self._serialized_models(snapshot, base_url)
            self._full, self._full_of = _answer(default, models), key
        return self._full

    def visible(
        self,
        snapshot: Snapshot,
        base_url: str,
        default: str,
        permits: Callable[[CacheItem], bool],
    ) -> Answer:
        """Return the list of the kernelspecs that ``permits`` allows."""
        models = self._serialized_models(snapshot, base_url)
        return _answer(default, {name: model for name, model in models.items() if permits(snapshot.items[name])})

    def _serialized_models(self, snapshot: Snapshot, base_url: str) -> dict[str, bytes]:
        key = (snapshot.generation, base_url)
        if key != self._models_of:
            self._models = dict(_serialize(snapshot, base_url))
            self._models_of = key
        return self._models


def _serialize(snapshot: Snapshot, base_url: str) -> Iterable[tuple[str, bytes]]:
    for name, item in snapshot.items.items():
        try:
            model = kernelspec_model(name, item, snapshot.resources.get(name, ()), base_url)
            yield name, json.dumps(model).encode()
        except (TypeError, ValueError, KeyError):
            log.exception("The kernelspec %s cannot be listed", name)


def _answer(default: str, models: Mapping[str, bytes]) -> Answer:
    specs = b", ".join(json.dumps(name).encode() + b": " + model for name, model in models.items())
    body = b'{"default": ' + json.dumps(default).encode() + b', "kernelspecs": {' + specs + b"}}"
    return Answer(body, f'"{hashlib.sha256(body).hexdigest()}"')
