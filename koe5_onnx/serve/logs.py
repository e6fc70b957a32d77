"""JSON logs on stderr, one object per line. They contain no API keys, and texts only with --log-texts."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("koe5_onnx.serve")


class JsonFormatter(logging.Formatter):
    """Format a record as one line. The entries of `extra={"fields": {...}}` become fields of the object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a line break."""
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
    """Log to stderr: this server from `level` up, uvicorn and Python's warnings from WARNING up."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(JsonFormatter())
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
