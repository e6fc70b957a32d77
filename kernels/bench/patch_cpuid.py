"""Replace each CPUID instruction of libraries by UD2, for mask_cpuid.c on CPUs without CPUID faulting.

    python kernels/bench/patch_cpuid.py COPY_OF_A_LIBRARY...

Requires objdump, because the two bytes of CPUID also occur inside other instructions.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_CPUID, _UD2 = b"\x0f\xa2", b"\x0f\x0b"


def patch(library: Path) -> int:
    """Replace the instructions in the file and return their number."""
    address_to_offset = _text_offset(library)
    data = bytearray(library.read_bytes())
    lines = _objdump("-d", "-j", ".text", library)
    places = [int(line.split(":")[0], 16) for line in lines if re.search(r"\tcpuid\s*$", line)]
    for place in places:
        at = slice(place + address_to_offset, place + address_to_offset + 2)
        if data[at] != _CPUID:
            raise ValueError(f"{library} has no CPUID at {place:#x}, although objdump shows one there")
        data[at] = _UD2
    library.write_bytes(data)
    return len(places)


def _text_offset(library: Path) -> int:
    """Return the difference between file offsets and addresses in the section .text."""
    fields = next(line.split() for line in _objdump("-h", library) if " .text " in line)
    return int(fields[5], 16) - int(fields[3], 16)


def _objdump(*arguments: str | Path) -> list[str]:
    command = ["objdump", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - a given file
    return done.stdout.splitlines()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        patch(Path(name))
