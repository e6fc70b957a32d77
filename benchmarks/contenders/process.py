"""Start a contender's worker process, send requests to it, and read its memory and CPU time."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.contenders.engine import Array
from benchmarks.contenders.registry import OWN, ROOT, Contender
from koe5_onnx import Koe5Error

_STDERR_SHOWN = 1500


class ContenderError(Koe5Error, RuntimeError):
    """A contender's process died or answered with an error."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process, in bytes."""

    rss_bytes: int
    peak_rss_bytes: int
    anonymous_bytes: int
    """Memory that is not mapped from files, such as the heap."""

    @property
    def file_bytes(self) -> int:
        """Memory mapped from files, such as weights and libraries."""
        return self.rss_bytes - self.anonymous_bytes


class ContenderProcess:
    """One contender's process.

    Args:
        contender: The contender to run.
        files: Folder that the contender opens.
        checkpoint: Folder of the tokenizer and the configuration.
        threads: Number of threads of the contender's library.

    Raises:
        InputError: The contender's Python environment is missing.
    """

    def __init__(self, contender: Contender, files: Path, checkpoint: Path, threads: int) -> None:
        self.contender = contender
        opening = {
            "family": contender.family,
            "files": str(files.resolve()),
            "checkpoint": str(checkpoint.resolve()),
            "threads": threads,
            "options": dict(contender.options),
            "batch": 0,
        }
        command = [str(contender.python), "-m", "benchmarks.contenders.worker", json.dumps(opening)]
        environment = environment_of(contender.environment) | {"OMP_NUM_THREADS": str(threads)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise ContenderError(f"the process of {contender.name} has no pipes")
        self._requests, self._replies = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def ask(self, do: str, **rest: Any) -> dict[str, Any]:
        """Send the command `do` of worker.py and return the reply.

        Raises:
            ContenderError: The reply is an error, or the process has ended.
        """
        try:
            self._requests.write(json.dumps({"do": do, **rest}) + "\n")
            self._requests.flush()
            line = self._replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderError(f"{self.contender.name} ended during {do!r}: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ContenderError(f"{self.contender.name} failed during {do!r}: {reply['error']}")
        return reply

    def embed(self, texts: Sequence[str]) -> Array:
        """Return the embeddings, float32[n, dim], of texts that include prompts."""
        reply = self.ask("embed", texts=list(texts), answer=True)
        flat = np.frombuffer(base64.b64decode(reply["embeddings"]), np.float32)
        return flat.reshape(len(texts), reply["dim"])

    def memory(self) -> Memory:
        """Return the current memory use."""
        return memory_of(self.pid)

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads since the process started."""
        return cpu_seconds_of(self.pid)

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace")[-_STDERR_SHOWN:].strip()
        return f"exit code {self._process.returncode}\n{words}"


def environment_of(name: str) -> dict[str, str]:
    """Return the variables of a process in an environment: this checkout on PYTHONPATH, the Hub offline."""
    variables = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "export")]
    if name == OWN and variables.get("PYTHONPATH"):
        paths.append(variables["PYTHONPATH"])
    return variables | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def memory_of(pid: int) -> Memory:
    """Return the resident memory of a process.

    Source: https://docs.kernel.org/filesystems/proc.html (status, smaps_rollup)
    """
    status = kilobytes_of(Path(f"/proc/{pid}/status"))
    rollup = kilobytes_of(Path(f"/proc/{pid}/smaps_rollup"))
    return Memory(rollup["Rss"] * 1024, status["VmHWM"] * 1024, rollup["Anonymous"] * 1024)


def cpu_seconds_of(pid: int) -> float:
    """Return the user and system time of a process, from /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kilobytes_of(file: Path) -> Mapping[str, int]:
    """Return the values of the lines "Name:  123 kB" in a file."""
    found = {}
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0])
    return found
