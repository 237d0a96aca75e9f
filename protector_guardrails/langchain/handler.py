"""Callback handlers for people who log what the guard decides."""

# ruff: noqa: ARG002 - hooks that do nothing until they are overridden

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler

from protector_guardrails.langchain.events import EventName, GuardEvent

_NAMES = frozenset(get_args(EventName))
_HOOKS = {
    "protector.detoxified": "on_detoxified",
    "protector.refused": "on_refused",
    "protector.error": "on_guard_error",
    "protector.reviewed": "on_reviewed",
}


class ProtectorCallbackHandler(BaseCallbackHandler):
    """Override what you want to hear of; every method gets a typed event without any text of what was judged.

    Pass it like any handler, in ``config={"callbacks": [handler]}`` or to a model. It works
    under the async modes too, where LangChain calls it in a thread; see
    :class:`AsyncProtectorCallbackHandler` for hooks that await.

    It is for logging and counting, not for blocking: LangChain logs and swallows what a
    handler raises, calls asynchronous ones too late to stop a synchronous run, and another
    handler may have been told before. To block, use ``Policy(on_harm="refuse")`` or ``"raise"``.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from protector_guardrails import protect
        >>> class Log(ProtectorCallbackHandler):
        ...     def on_safe_verdict(self, event):
        ...         print(event.subject, event.action, event.verdict.harmful)
        >>> model = protect(FakeListChatModel(responses=["For eight minutes."]))
        >>> _ = model.invoke("How long do I boil an egg?", {"callbacks": [Log()]})
        response pass False
    """

    def on_harm_verdict(self, event: GuardEvent) -> None:
        """Something was judged harmful; ``event.action`` says what follows."""

    def on_safe_verdict(self, event: GuardEvent) -> None:
        """Something was judged safe."""

    def on_detoxified(self, event: GuardEvent) -> None:
        """A rewrite leaves."""

    def on_refused(self, event: GuardEvent) -> None:
        """A refusal leaves, because of harm or because nothing could be judged."""

    def on_guard_error(self, event: GuardEvent) -> None:
        """A detector or detoxifier failed or ran out of time; ``event.error`` says how."""

    def on_reviewed(self, event: GuardEvent) -> None:
        """A human decided on a withheld answer; ``event.review`` says how."""

    def on_custom_event(
        self,
        name: str,
        data: Any,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Read the guard's events and pass them on; an override should call ``super()``."""
        if (event := _read(name, data)) is not None:
            getattr(self, _hook_of(event))(event)


class AsyncProtectorCallbackHandler(AsyncCallbackHandler):
    """Like :class:`ProtectorCallbackHandler`, with hooks that are awaited.

    For ``ainvoke``, ``astream`` and their like. Under the synchronous modes LangChain runs
    it to its end in an event loop of its own.

    Example:
        >>> import asyncio
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from protector_guardrails import protect
        >>> class Log(AsyncProtectorCallbackHandler):
        ...     async def on_safe_verdict(self, event):
        ...         print(event.subject, event.action)
        >>> model = protect(FakeListChatModel(responses=["For eight minutes."]))
        >>> _ = asyncio.run(model.ainvoke("How long do I boil an egg?", {"callbacks": [Log()]}))
        response pass
    """

    async def on_harm_verdict(self, event: GuardEvent) -> None:
        """Something was judged harmful; ``event.action`` says what follows."""

    async def on_safe_verdict(self, event: GuardEvent) -> None:
        """Something was judged safe."""

    async def on_detoxified(self, event: GuardEvent) -> None:
        """A rewrite leaves."""

    async def on_refused(self, event: GuardEvent) -> None:
        """A refusal leaves, because of harm or because nothing could be judged."""

    async def on_guard_error(self, event: GuardEvent) -> None:
        """A detector or detoxifier failed or ran out of time; ``event.error`` says how."""

    async def on_reviewed(self, event: GuardEvent) -> None:
        """A human decided on a withheld answer; ``event.review`` says how."""

    async def on_custom_event(
        self,
        name: str,
        data: Any,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Read the guard's events and pass them on; an override should call ``super()``."""
        if (event := _read(name, data)) is not None:
            await getattr(self, _hook_of(event))(event)


def _read(name: str, data: Any) -> GuardEvent | None:
    """The event, or None if it is somebody else's."""
    return GuardEvent.model_validate(data) if name in _NAMES and isinstance(data, Mapping) else None


def _hook_of(event: GuardEvent) -> str:
    if event.name == "protector.verdict":
        return "on_harm_verdict" if event.verdict is not None and event.verdict.harmful else "on_safe_verdict"
    return _HOOKS[event.name]
