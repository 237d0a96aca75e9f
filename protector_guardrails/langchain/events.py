"""Custom events: what happened, for callback handlers and ``astream_events``.

Names are ``protector.verdict`` (a response was judged), ``protector.detoxified`` (a rewrite
leaves), ``protector.refused`` (a refusal leaves) and ``protector.error`` (a detector or
detoxifier failed). The payload is JSON-able and holds no text of the response.

Events tell; they cannot block. A handler may still raise with ``raise_error=True``: then
the response does not leave, and the caller gets the handler's exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.runnables.config import (
    RunnableConfig,
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)

from protector_guardrails.types import Outcome

EventName = Literal["protector.verdict", "protector.detoxified", "protector.refused", "protector.error"]

_REPLACED: dict[str, EventName] = {"rewrite": "protector.detoxified", "refuse": "protector.refused"}


@dataclass(frozen=True, slots=True)
class GuardEvent:
    """One event.

    Attributes:
        name: What happened.
        data: ``action``, ``detector``, ``verdict``, ``recheck`` and ``error``.
    """

    name: EventName
    data: dict[str, Any]


def events_of(outcome: Outcome, *, judged_here: bool = True) -> list[GuardEvent]:
    """The events that an outcome gives rise to.

    Args:
        outcome: What became of a response.
        judged_here: Whether the first verdict is news, not one handed on by another runnable.
    """
    verdict = outcome.verdict
    data = {
        "action": outcome.action,
        "detector": verdict.detector if verdict else None,
        "verdict": verdict.to_dict() if verdict else None,
        "recheck": outcome.recheck.to_dict() if outcome.recheck else None,
        "error": outcome.error,
    }
    names: list[EventName] = []
    if verdict and judged_here:
        names.append("protector.verdict")
    if outcome.action in _REPLACED:
        names.append(_REPLACED[outcome.action])
    if outcome.error:
        names.append("protector.error")
    return [GuardEvent(name, dict(data)) for name in names]


def dispatch(events: Sequence[GuardEvent], config: RunnableConfig | None = None) -> None:
    """Send events to the handlers of the current run; silently none where there is no run.

    This is ``dispatch_custom_event``, which raises outside of a run, with the manager made
    once for all events.
    """
    if events:
        manager = get_callback_manager_for_config(ensure_config(config))
        if manager.parent_run_id is not None:
            for event in events:
                manager.on_custom_event(event.name, event.data, run_id=manager.parent_run_id)


async def adispatch(events: Sequence[GuardEvent], config: RunnableConfig | None = None) -> None:
    """Like :func:`dispatch`, for async runs."""
    if events:
        manager = get_async_callback_manager_for_config(ensure_config(config))
        if manager.parent_run_id is not None:
            for event in events:
                await manager.on_custom_event(event.name, event.data, run_id=manager.parent_run_id)
