"""References inside a schema: `$ref` with JSON pointers, anchors and embedded `$id`s."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from api.text.schemas.findings import ROOT, Pointer, child


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a schema."""

    node: Any
    pointer: Pointer
    """From the schema's root, for errors."""
    base: str
    """The URI that references in it are relative to; empty if no `$id` sets one."""


class References:
    """Finds what the references of one schema refer to. Nothing is loaded from elsewhere."""

    def __init__(self, root: Any) -> None:
        self.root = Place(root, ROOT, own_base(root, ""))
        self._resources: dict[str, Place] | None = None
        self._anchors: dict[tuple[str, str], Place] = {}

    def find(self, reference: str, base: str) -> Place | None:
        """The part that a reference refers to; None if it is not in the schema."""
        try:
            absolute = base + reference if reference.startswith("#") else urljoin(base, reference)
            uri, fragment = urldefrag(absolute)
        except ValueError:  # not a URI
            return None
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            self._index()
            return self._anchors.get((uri, fragment))
        resource = self.root if uri == self.root.base else self._index().get(uri)
        return None if resource is None else _walk(resource, fragment)

    def _index(self) -> dict[str, Place]:
        if self._resources is None:
            self._resources = {}
            for place in _places(self.root):
                if isinstance(place.node.get("$id"), str):
                    self._resources[place.base] = place
                if isinstance(anchor := place.node.get("$anchor"), str):
                    self._anchors[place.base, anchor] = place
        return self._resources


def own_base(node: Any, base: str) -> str:
    """The base URI inside a part, which its `$id` may change."""
    identifier = node.get("$id") if isinstance(node, dict) else None
    if not isinstance(identifier, str):
        return base
    try:
        return urldefrag(urljoin(base, identifier))[0]
    except ValueError:  # not a URI
        return base


def _walk(start: Place, fragment: str) -> Place | None:
    node, pointer, base = start.node, start.pointer, start.base
    for part in fragment.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return None
        pointer = child(pointer, key)
        base = own_base(node, base)
    return Place(node, pointer, base)


def _places(root: Place) -> Iterator[Place]:
    """All objects of a schema, without recursion because a client decides how deep it is."""
    waiting = [root]
    while waiting:
        place = waiting.pop()
        node = place.node
        if isinstance(node, dict):
            yield place
            inner = list(node.items())
        elif isinstance(node, list):
            inner = list(enumerate(node))
        else:
            continue
        for key, value in inner:
            if isinstance(value, dict | list):
                waiting.append(Place(value, child(place.pointer, key), own_base(value, place.base)))
