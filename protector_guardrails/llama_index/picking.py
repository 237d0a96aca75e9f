"""One function that picks the guard for what it is given."""

from __future__ import annotations

from os import PathLike
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms import LLM
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import QueryBundle

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.llama_index.engines import GuardedChatEngine, GuardedQueryEngine
from protector_guardrails.llama_index.postprocessor import HarmResponsePostprocessor
from protector_guardrails.llama_index.responses import is_response
from protector_guardrails.llama_index.synthesizer import GuardedSynthesizer
from protector_guardrails.policy import PolicyLike


def guard(
    target: Any,
    *,
    detector: str | HarmDetector = "embedded",
    detoxifier: AnyDetoxifier = "redact",
    policy: PolicyLike | None = None,
    audit: AuditLog | str | PathLike[str] | None = None,
    query_str: str | None = None,
    query_bundle: QueryBundle | None = None,
) -> Any:
    """Guard an LLM, an engine, a synthesizer, or a response that is there already.

    Args:
        target: What to guard; it is left as it is.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a :class:`~protector_guardrails.Detoxifier`, or an LLM that rewrites.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.
        query_str: For a response: what was asked.
        query_bundle: For a response: the same as a query.

    Returns:
        A ``GuardedLLM``, ``GuardedQueryEngine``, ``GuardedChatEngine`` or
        ``GuardedSynthesizer``; for a response what ``HarmResponsePostprocessor`` makes of it.

    Raises:
        ConfigurationError: If it is nothing of the kind, or a question is given for
            anything but a response.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from llama_index.core.chat_engine import SimpleChatEngine
        >>> from protector_guardrails.llama_index import guard
        >>> engine = guard(SimpleChatEngine.from_defaults(llm=MockLLM()))
        >>> type(engine).__name__, "Good morning" in str(engine.chat("Good morning"))
        ('GuardedChatEngine', True)
    """
    settings: dict[str, Any] = {"detector": detector, "detoxifier": detoxifier, "policy": policy, "audit": audit}
    if is_response(target):
        guarding = HarmResponsePostprocessor(**settings)
        return guarding.postprocess_response(target, query_str=query_str, query_bundle=query_bundle)
    if query_str is not None or query_bundle is not None:
        raise ConfigurationError(f"a {type(target).__name__} is asked its questions later: leave query_str out")
    if isinstance(target, LLM):
        from protector_guardrails.llama_index.llm import GuardedLLM

        return GuardedLLM(target, **settings)
    for kind, guarded in _GUARDS.items():
        if isinstance(target, kind):
            return guarded(target, **settings)
    raise ConfigurationError(f"there is no guard for a {type(target).__name__}: {_advice(target)}")


_GUARDS: dict[type, Any] = {
    BaseQueryEngine: GuardedQueryEngine,
    BaseChatEngine: GuardedChatEngine,
    BaseSynthesizer: GuardedSynthesizer,
}


def _advice(target: Any) -> str:
    if hasattr(target, "as_query_engine"):
        return "guard what its as_query_engine() or as_chat_engine() returns"
    if hasattr(target, "retrieve"):
        return "use HarmNodePostprocessor for what is retrieved, and guard the engine or LLM that answers"
    if hasattr(target, "stream_events") or hasattr(target, "run"):
        return "guard the LLM that it uses; for a step of a workflow see GuardStep"
    return "pass an LLM, a query engine, a chat engine, a response synthesizer, or a response"
