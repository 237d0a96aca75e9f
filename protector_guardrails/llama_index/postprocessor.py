"""A guard for responses of query and chat engines."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from llama_index.core.schema import QueryBundle

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier
from protector_guardrails.errors import HarmfulResponseError
from protector_guardrails.llama_index.component import GuardComponent
from protector_guardrails.llama_index.events import tell
from protector_guardrails.llama_index.responses import AnswerItem, Item, asked_with
from protector_guardrails.policy import PolicyLike


class HarmResponsePostprocessor(GuardComponent):
    """Judges a response of LlamaIndex after it was made, and writes the verdict into its metadata.

    It takes every kind of response: ``Response``, ``StreamingResponse``,
    ``AsyncStreamingResponse``, ``PydanticResponse``, ``AgentChatResponse`` and
    ``StreamingAgentChatResponse``; a plain text becomes a ``Response``. What is given is
    never changed; what is returned is of the same kind and holds the verdict in
    ``metadata["protector"]``.

    - A safe response keeps its text, ``source_nodes``, ``sources`` and metadata.
    - A rewrite or refusal has none of them, since they may quote what was judged harmful.
      In place of a ``PydanticResponse``, whose JSON was judged, comes a ``Response``.
    - A stream is judged while it is read: held in full, or in windows with
      ``Policy(streaming="window")``. Until its end it has no sources and no metadata. On
      harm the source of the stream is closed.

    The engine that made the response has told its own handlers of it before. To hide it from
    them too, guard the model: :class:`~protector_guardrails.GuardedLLM`. The memory of a chat
    engine is not seen here: use :class:`~protector_guardrails.GuardedChatEngine`.

    Args:
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a chat model, or a :class:`~protector_guardrails.Detoxifier`.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.

    Raises:
        ConfigurationError: When made, if a name is not known.

    Example:
        >>> from llama_index.core.base.response.schema import Response
        >>> from protector_guardrails import HarmResponsePostprocessor
        >>> guard = HarmResponsePostprocessor()
        >>> response = guard.postprocess_response(Response("Boil it for eight minutes."), query_str="How?")
        >>> str(response), response.metadata["protector"]["action"]
        ('Boil it for eight minutes.', 'pass')
    """

    def __init__(
        self,
        *,
        detector: str | HarmDetector = "embedded",
        detoxifier: AnyDetoxifier = "redact",
        policy: PolicyLike | None = None,
        audit: AuditLog | str | PathLike[str] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(detector=detector, detoxifier=detoxifier, policy=policy, audit=audit, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "HarmResponsePostprocessor"

    def postprocess_response(
        self, response: Any, *, query_str: str | None = None, query_bundle: QueryBundle | None = None
    ) -> Any:
        """Guard a response.

        Args:
            response: What an engine returned.
            query_str: What was asked.
            query_bundle: The same as a query; an image in it is noted, not looked into.

        Raises:
            InputError: If it is no response, or not one of text.
            HarmfulResponseError: Under ``Policy(on_harm="raise")``; of a stream, while it is read.
        """
        item = Item(response, asked_with(query_str, query_bundle))
        del response  # from here on no frame shows it
        return self.settled(item)

    async def apostprocess_response(
        self, response: Any, *, query_str: str | None = None, query_bundle: QueryBundle | None = None
    ) -> Any:
        """Like :meth:`postprocess_response`, without blocking the event loop."""
        item = Item(response, asked_with(query_str, query_bundle))
        del response
        return await self.asettled(item)

    def settled(self, item: Item | AnswerItem) -> Any:
        """What leaves for a response that was taken apart."""
        if item.is_streamed:
            return item.guarded(self)
        [outcome] = self.protector.guard([item.exchange], return_exceptions=True)
        tell(outcome)
        item.remember(outcome)
        delivered = item.delivered(outcome)
        if isinstance(delivered, HarmfulResponseError):
            del outcome
            raise delivered
        return delivered

    async def asettled(self, item: Item | AnswerItem) -> Any:
        """Like :meth:`settled`, without blocking the event loop."""
        if item.is_streamed:
            return item.guarded(self)
        protector = await self.aprotector()
        [outcome] = await protector.aguard([item.exchange], return_exceptions=True)
        tell(outcome)
        await item.aremember(outcome)
        delivered = item.delivered(outcome)
        if isinstance(delivered, HarmfulResponseError):
            del outcome
            raise delivered
        return delivered
