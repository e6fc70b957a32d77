"""The process of one contender, which reads requests and writes replies as JSON lines.

    {"do": "load"}                            -> {"versions": {...}, "batches": [...], "at": seconds}
    {"do": "open"}                            -> {"about": "...", "at": seconds}
    {"do": "embed", "texts": [...], "batch": n, "answer": true}
                                              -> {"seconds": s, "at": seconds, "embeddings": base64, "dim": n}
    {"do": "repeat", "text": "...", "calls": n} -> {"seconds": [s, ...]}

`at` is the machine's monotonic clock, which the parent also reads. Errors are reported as {"error": "..."}.
The process ends at the end of its input. Output that libraries print goes to stderr.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from benchmarks.contenders.engine import Engine, EngineModule, Opening

Reply = dict[str, Any]


class Commands:
    """The worker's commands. The others require `open`."""

    def __init__(self, module: EngineModule, opening: Opening) -> None:
        self._module, self._opening = module, opening
        self._engine: Engine | None = None

    def answer(self, request: dict[str, Any]) -> Reply:
        """Run the command of a request and return its reply.

        Raises:
            ValueError: The command is unknown, or nothing is open yet.
        """
        known: dict[str, Any] = {
            "load": self._load,
            "open": self._open,
            "embed": self._embed,
            "repeat": self._repeat,
        }
        name = request.pop("do", None)
        if name not in known:
            raise ValueError(f"unknown command {name!r}. Expected one of {', '.join(known)}")
        reply: Reply = known[name](**request)
        return reply

    def _load(self) -> Reply:
        versions = dict(self._module.load())
        return {"versions": versions, "batches": list(self._module.BATCHES), "at": time.monotonic()}

    def _open(self) -> Reply:
        self._engine = self._module.open_engine(self._opening)
        return {"about": getattr(self._engine, "about", ""), "at": time.monotonic()}

    def _embed(self, texts: list[str], batch: int = 0, *, answer: bool = False) -> Reply:
        engine = self._opened()
        if batch:
            engine.batch = batch
        start = time.perf_counter()
        found = engine.embed(texts)
        reply: Reply = {"seconds": time.perf_counter() - start, "at": time.monotonic()}
        if answer:
            reply |= {"embeddings": base64.b64encode(found.tobytes()).decode(), "dim": found.shape[1]}
        return reply

    def _repeat(self, text: str, calls: int) -> Reply:
        engine, seconds = self._opened(), []
        for _ in range(calls):
            start = time.perf_counter()
            engine.embed([text])
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def _opened(self) -> Engine:
        if self._engine is None:
            raise ValueError("nothing is open. Send {'do': 'open'} first")
        return self._engine


def serve(commands: Commands, requests: TextIO, replies: TextIO) -> None:
    """Answer each line of requests until the input ends."""
    for line in requests:
        try:
            reply = commands.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the parent must receive every error of a library
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Read an `Opening` as JSON from the command line and answer requests. stdout is reserved for replies."""
    given = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module: Any = importlib.import_module(f"benchmarks.contenders.{given.pop('family')}")
    given |= {name: Path(given[name]) for name in ("files", "checkpoint")}
    serve(Commands(module, Opening(**given)), sys.stdin, replies)


if __name__ == "__main__":
    main()
