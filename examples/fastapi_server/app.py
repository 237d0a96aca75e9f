"""The application: settings, the guard, and the routes in front of it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from uvicorn.importer import import_from_string

from protector_guardrails import Exchange, HarmDetector, Policy, Protector, protect

from . import wire
from .chat import Chat, json_response
from .door import Door, log_to_stderr

log = logging.getLogger("chat_server")

PROBE = Exchange(response=" ".join(f"Room {number} opens at nine." for number in range(1, 101)))
"""What is judged to see whether the detector works: long enough for several windows, which need its pool of threads."""


class Settings(BaseModel):
    """What the environment says, in variables such as ``CHAT_TIMEOUT_S``.

    Attributes:
        model: Where the chat model is, ``module:attribute``: a model, or a function that makes one.
        audit_log: File of the audit log; None for no log.
        max_concurrent: Chats at a time; further ones are told to come back.
        timeout_s: Seconds that an answer may take, judging included.
        ready_s: Seconds that the detector may take for a page of text before ``/ready`` says no.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "fastapi_server.demo_model:DemoModel"
    audit_log: Path | None = None
    max_concurrent: int = Field(32, ge=1)
    timeout_s: float = Field(120.0, gt=0)
    ready_s: float = Field(5.0, gt=0)

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this process; what is not set has its default."""
        found = {name: os.environ.get(f"CHAT_{name.upper()}") for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in found.items() if value})


def from_environment() -> FastAPI:
    """The application as ``uvicorn --factory`` makes it."""
    log_to_stderr()
    return create_app(Settings.from_environment())


def create_app(
    settings: Settings, *, model: Runnable[Any, Any] | None = None, detector: str | HarmDetector = "embedded"
) -> FastAPI:
    """The application.

    Args:
        settings: Where the model is, and limits.
        model: The model itself, in place of the one in the settings.
        detector: What judges.
    """
    guarded = protect(
        model or _load_model(settings.model),
        detector=detector,
        detoxifier="redact",
        policy=Policy(streaming="window"),
        audit=settings.audit_log,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        found = await _judge_once(detector, settings.ready_s)  # loads it, so that the first client need not wait
        log.log(logging.ERROR if found["problem"] else logging.INFO, "started", extra={"facts": found})
        yield

    app = FastAPI(title="A model under guard", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Door, limit=settings.max_concurrent)
    chat = Chat(guarded, settings.timeout_s)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer would send the input back, pictures included.
        wrong = [{"where": list(one["loc"]), "message": one["msg"]} for one in error.errors()]
        return json_response(wire.failure("invalid_request", "The request is not valid.", details=wrong), 422)

    @app.get("/health")
    async def health() -> Response:
        """Whether the process is alive: if not, start it again."""
        return json_response({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Whether it can judge: if not, send no clients."""
        found = await _judge_once(detector, settings.ready_s)
        return json_response({"ready": not found["problem"], **found}, 503 if found["problem"] else 200)

    @app.post("/chat")
    async def answer(request: Request, asked: wire.ChatRequest) -> Response:
        """Answer, at once or as server-sent events."""
        return await chat.respond(request, asked)

    return app


def _load_model(where: str) -> Runnable[Any, Any]:
    found = import_from_string(where)
    return found if isinstance(found, Runnable) else found()


async def _judge_once(detector: str | HarmDetector, timeout_s: float) -> dict[str, str | None]:
    """Have something judged: the detector's name, and what is wrong with it, if anything is."""
    try:
        protector = await asyncio.to_thread(Protector, detector, "refuse", policy=Policy(timeout_s=timeout_s))
        [outcome] = await protector.aguard([PROBE])
    except Exception as error:
        return {"detector": None, "problem": type(error).__name__}
    return {"detector": outcome.verdict and outcome.verdict.detector, "problem": outcome.error}
