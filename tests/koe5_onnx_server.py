"""The command koe5-onnx for the documentation's code blocks, except that `serve` stops when it is healthy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_TIMEOUT_S = 60


@contextmanager
def listening(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `koe5-onnx serve` on a free port, yield host:port and the process, and stop it at the end."""
    command = [sys.executable, "-m", "koe5_onnx.cli", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True) as process:
        log = iter(process.stderr or ())
        address = f"127.0.0.1:{_port_in(log, process)}"
        rest = threading.Thread(target=sys.stderr.writelines, args=(log,))
        rest.start()
        try:
            wait_until_healthy(process, address)
            yield address, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_TIMEOUT_S)
            rest.join()


def _port_in(log: Iterator[str], process: subprocess.Popen[str]) -> int:
    """Return the port from the first log line that has it, and copy the log up to that line to stderr."""
    for line in log:
        sys.stderr.write(line)
        if '"listening"' in line or '"starting"' in line:
            return int(json.loads(line)["port"])
    raise SystemExit(process.wait())


def wait_until_healthy(process: subprocess.Popen[str], address: str) -> None:
    """Wait until /health succeeds. Exit with the server's exit code if the server ends first."""
    end = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(process.returncode)
        try:
            with urllib.request.urlopen(f"http://{address}/health", timeout=_TIMEOUT_S):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise SystemExit(f"the server at {address} is not healthy after {_TIMEOUT_S} s")


def main() -> int:
    """Run a subcommand. If it is `serve`, wait until the server is healthy and stop it."""
    if sys.argv[1:2] != ["serve"] or "--help" in sys.argv:
        from koe5_onnx.cli import main as run

        return run()
    with listening(sys.argv[2:], os.environ) as (_, process):
        pass
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
