"""One JSON object a line on stderr: what happened, when, and to which request. Never a text or a key."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("koe5_onnx.serve")


class JsonLines(logging.Formatter):
    """Formats a record as one line; what was given as `extra={"fields": {...}}` becomes its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: str) -> None:
    """Send this server's log, and uvicorn's above its chatter, to stderr."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(JsonLines())
    for name, least in (
        ("koe5_onnx.serve", level.upper()),
        ("uvicorn", "WARNING"),
        ("py.warnings", "WARNING"),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [to_stderr]
        logger.setLevel(least)
        logger.propagate = False
    logging.captureWarnings(capture=True)
