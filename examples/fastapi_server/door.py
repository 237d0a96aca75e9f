"""What every request passes: it gets an id and a line in the log, and is turned away when there are too many."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .wire import as_json, failure

log = logging.getLogger("chat_server")


class Door:
    """Middleware in ASGI's own form: it is done with a request when its last byte is sent, or its client gone.

    Args:
        app: What is behind it.
        limit: Requests at a time, health checks apart; further ones are told to come back.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit, self._busy = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        run_id, begun = uuid4(), time.perf_counter()
        facts: dict[str, Any] = {"request_id": str(run_id), "method": scope["method"], "status": None}
        scope.setdefault("state", {}).update(run_id=run_id, facts=facts)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", str(run_id).encode())]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                facts["complete"] = True

        counts = not scope["path"].endswith(("/health", "/ready"))  # which have to be answered when all is full
        self._busy += counts
        try:
            if counts and self._busy > self._limit:
                full = as_json(failure("overloaded", "Too many chats at a time."))
                response = Response(full, 503, {"Retry-After": "1"}, media_type="application/json")
                await response(scope, receive, send_on)
            else:
                await self._app(scope, receive, send_on)
        finally:
            self._busy -= counts
            route = getattr(scope.get("route"), "path", "other")  # what was asked for may be any text
            elapsed_ms = round((time.perf_counter() - begun) * 1000)
            log.info("request", extra={"facts": {"complete": False, **facts, "route": route, "ms": elapsed_ms}})


class JsonLines(logging.Formatter):
    """One JSON object per line. Of an exception only its class: its message may quote what a model wrote."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Have the whole process log in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
