"""Answers of the protected model, whole or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from . import wire

T = TypeVar("T")


class Chat:
    """Asks the model, and stops it when time is up or the client has gone.

    Args:
        model: A protected model.
        timeout_s: Seconds that an answer may take.
    """

    def __init__(self, model: Runnable[Any, Any], timeout_s: float) -> None:
        self._model, self._timeout_s = model, timeout_s

    async def respond(self, request: Request, asked: wire.ChatRequest) -> Response:
        """Answer, or begin to."""
        facts, run_id = request.state.facts, request.state.run_id
        facts.update(stream=asked.stream)
        messages = [message.to_langchain() for message in asked.messages]
        config: RunnableConfig = {"run_id": run_id}  # so that the audit log has it under the request's id
        if asked.stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies pass events on at once
            return _EventStream(self._events(messages, config, facts), headers=headers)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await _while_connected(request.receive, self._model.ainvoke(messages, config))
        except ClientDisconnect:
            return Response(status_code=499)  # for the log; nobody reads it
        except Exception as error:
            facts.update(error=type(error).__name__)
            status, body = wire.failure_of(error)
            return json_response(body, status)
        verdict = answer.response_metadata.get("protector", {})
        facts.update(_told_of(verdict))
        return json_response(wire.answer(run_id, answer.text, verdict))

    async def _events(
        self, messages: list[BaseMessage], config: RunnableConfig, facts: dict[str, Any]
    ) -> AsyncIterator[str]:
        run_id = config["run_id"]
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        verdict: dict[str, Any] = {}
        try:
            async with aclosing(self._model.astream(messages, config)) as chunks:
                while True:
                    # Only around this: at the yield below it is the client who takes time.
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    verdict = chunk.response_metadata.get("protector", verdict)
                    if chunk.text:
                        yield wire.event(wire.delta(run_id, chunk.text))
        except Exception as error:
            facts.update(error=type(error).__name__)
            yield wire.event(wire.failure_of(error)[1])
        else:
            facts.update(_told_of(verdict))
            yield wire.event(wire.end(run_id, verdict))
        yield wire.DONE


class _EventStream(StreamingResponse):
    """Server-sent events, made until the last one is sent or the client has gone.

    Starlette would stop them by a cancellation that comes again at every await, so that a
    model could not say good-bye to its provider.
    """

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self.body_iterator):
            with suppress(ClientDisconnect):
                await _while_connected(receive, self.stream_response(send))


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await work; if the client goes away, cancel it once and wait until it has cleaned up.

    Raises:
        ClientDisconnect: If the client went away.
    """

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.create_task(work), asyncio.create_task(hang_up())
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)  # else asyncio logs what nobody asked for


def json_response(content: Any, status: int = 200) -> Response:
    """A response in JSON."""
    return Response(wire.as_json(content), status, media_type="application/json")


def _told_of(verdict: dict[str, Any]) -> dict[str, Any]:
    """What the log is told of a verdict: numbers and names."""
    return {name: verdict.get(name) for name in ("action", "harmful", "score", "detector", "error")}
