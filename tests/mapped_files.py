"""File mappings of a process, as reported by Linux."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) *(.*)")


@dataclass(frozen=True)
class Memory:
    """Resident bytes that only one process has mapped, and those that several processes have mapped."""

    private_bytes: int
    shared_bytes: int


def maps_of(pid: int | None, ending: str) -> set[int]:
    """Return the inodes of the mapped files whose names have this ending."""
    return {inode for inode, name, _ in _mappings(pid) if name.endswith(ending)}


def memory_of(pid: int | None, ending: str) -> Memory:
    """Return the memory of the mapped files whose names have this ending."""
    found = [sizes for _, name, sizes in _mappings(pid) if name.endswith(ending)]

    def total(kind: str) -> int:
        return 1024 * sum(sizes.get(f"{kind}_{state}", 0) for sizes in found for state in ("Clean", "Dirty"))

    return Memory(total("Private"), total("Shared"))


def _mappings(pid: int | None) -> Iterator[tuple[int, str, dict[str, int]]]:
    inode, name, sizes = 0, "", dict[str, int]()
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if head := _HEAD.fullmatch(line):
            yield inode, name, sizes
            inode, name, sizes = int(head[1]), head[2], {}
        elif line.endswith(" kB"):
            key, size, _ = line.split()
            sizes[key.removesuffix(":")] = int(size)
    yield inode, name, sizes
