"""A bounded cache for the embeddings of recent texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """The most recently used values. Not thread-safe.

    Args:
        entries: Maximum number of values.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[bytes, Value] = OrderedDict()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Value]:
        """Return the cached values by key."""
        found = {key: self._values[key] for key in keys if key in self._values}
        for key in found:
            self._values.move_to_end(key)
        return found

    def put(self, values: Mapping[bytes, Value]) -> None:
        """Store values, and remove the least recently used ones if there are more than `entries`."""
        self._values.update(values)
        while len(self._values) > self._entries:
            self._values.popitem(last=False)
