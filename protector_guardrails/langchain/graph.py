"""For graphs drawn by hand: a node that answers under guard, and an edge that looks at the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.langchain.guards import read_record
from protector_guardrails.langchain.messages import METADATA_KEY, read_response
from protector_guardrails.langchain.protected_model import protect
from protector_guardrails.policy import PolicyLike


def protected_node(
    mllm: Runnable[LanguageModelInput, Any],
    *,
    detector: str | HarmDetector = "embedded",
    detoxifier: AnyDetoxifier = "redact",
    policy: PolicyLike | None = None,
    audit: AuditLog | str | PathLike[str] | None = None,
    raw_callbacks: Sequence[BaseCallbackHandler] = (),
    messages_key: str = "messages",
) -> Runnable[Any, dict[str, list[AIMessage]]]:
    """A node for LangGraph that asks a model, under guard, and adds its answer to the messages.

    The state is a mapping or an object (a dataclass, a Pydantic model) with messages. The
    node works in ``invoke`` and ``ainvoke``, and every stream mode shows judged text only;
    see :func:`~protector_guardrails.protect` for what is promised.

    Args:
        mllm: The model, with its tools bound if it has any.
        detector: See :func:`~protector_guardrails.protect`, like what follows.
        detoxifier: What rewrites.
        policy: Thresholds, actions, limits.
        audit: Where outcomes are recorded.
        raw_callbacks: Handlers that see raw answers, for debugging.
        messages_key: Where the messages are in the state, and where the answer goes.

    Raises:
        ConfigurationError: If ``mllm`` is no model or a name is not known; in a run, if the state has no messages.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> node = protected_node(FakeListChatModel(responses=["At nine."]))
        >>> update = node.invoke({"messages": [("user", "When does it open?")]})
        >>> update["messages"][0].content, verdict_route(update)
        ('At nine.', 'safe')
    """
    model = protect(
        mllm, detector=detector, detoxifier=detoxifier, policy=policy, audit=audit, raw_callbacks=raw_callbacks
    )

    def answer(state: Any, config: RunnableConfig) -> dict[str, list[AIMessage]]:
        return {messages_key: [model.invoke(_messages_of(state, messages_key), config)]}

    async def aanswer(state: Any, config: RunnableConfig) -> dict[str, list[AIMessage]]:
        return {messages_key: [await model.ainvoke(_messages_of(state, messages_key), config)]}

    return RunnableLambda(answer, aanswer, name="protected_model")


def verdict_route(state: Any, *, messages_key: str = "messages") -> Literal["safe", "harmful"]:
    """Where to go after a protected model answered; for ``add_conditional_edges``.

    It tells what the model's own answer was judged to be: an answer that was rewritten or
    refused counts as ``"harmful"``, although what stands in the state is safe. Use it to
    send such turns elsewhere, for instance to a human.

    It fails closed. Without an AI message, without a verdict, after a failed detector, and
    where the seal of the verdict does not hold, it says ``"harmful"``. A seal holds in the process
    that gave the verdict, as long as the guard is in use, and breaks when the message's text is changed.

    Args:
        state: A mapping or object with messages, or the messages themselves.
        messages_key: Where the messages are in the state.
    """
    for message in reversed(_messages_of(state, messages_key)):
        if isinstance(message, AIMessage):
            judged = read_record(message.response_metadata.get(METADATA_KEY), read_response(message))
            safe = judged is not None and judged.verdict is not None and not judged.verdict.harmful
            return "safe" if safe else "harmful"
    return "harmful"


def _messages_of(state: Any, key: str) -> Sequence[Any]:
    if isinstance(state, Sequence) and not isinstance(state, str):
        return state
    messages = state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ConfigurationError(
            f"the graph's state has no list of messages under {key!r}: name their key with messages_key"
        )
    return messages
