"""One JSON object a line on standard error."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_log = logging.getLogger("cierzo.serve")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up(level: str) -> None:
    """Let our own and uvicorn's loggers write lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("cierzo.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())


def event(what: str, *, level: int = logging.INFO, raised: BaseException | None = None, **particulars: Any) -> None:
    """Log that something happened."""
    _log.log(level, what, extra={"fields": particulars}, exc_info=raised)
