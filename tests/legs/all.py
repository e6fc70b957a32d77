"""All legs, two at a time: each waits for downloads or keeps one core busy for much of its time.

What a leg says is shown when it has ended, as if it had run alone. After a failure no further one begins.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from environment import ROOT

LEGS = (
    "trained",
    "lowest",
    "sanitizers",
    "integrations",
    "examples",
    "ray",
    "optimum",
    "lean",
    "dist",
    "gpu",
)
"""Longest first."""
AT_ONCE = 2


def main() -> None:
    """Run the legs.

    Raises:
        SystemExit: One failed.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for ended in as_completed([pool.submit(run_leg, name, stop) for name in LEGS]):
            sys.stdout.write(ended.result())
            sys.stdout.flush()
    if stop.is_set():
        sys.exit("a leg failed: see above")


def run_leg(name: str, stop: threading.Event) -> str:
    """Run one leg to its end, unless one has failed: all that it said."""
    if stop.is_set():
        return f"===== leg {name}: not begun\n"
    start = time.monotonic()
    script = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run(
        [sys.executable, script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=ROOT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        stop.set()
    verdict = f"failed with {done.returncode}" if done.returncode else "passed"
    return (
        f"===== leg {name}\n{done.stdout}===== leg {name} {verdict} after {time.monotonic() - start:.0f} s\n"
    )


if __name__ == "__main__":
    main()
