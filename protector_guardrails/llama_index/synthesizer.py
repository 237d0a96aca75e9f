"""A response synthesizer whose answers are judged where they are made."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from os import PathLike
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.llama_index.postprocessor import HarmResponsePostprocessor
from protector_guardrails.llama_index.responses import AnswerItem, Item, asked_with
from protector_guardrails.policy import PolicyLike
from protector_guardrails.types import Exchange


class GuardedSynthesizer(BaseSynthesizer):
    """A response synthesizer that judges what another one says, for a ``RetrieverQueryEngine``.

    It judges the text before a response is made of it, so ``SynthesizeEndEvent`` and
    ``QueryEndEvent``, callbacks of synthesis and query, and the response itself hold what was
    judged; see :class:`~protector_guardrails.HarmResponsePostprocessor` for what leaves. Each
    call works on a shallow copy of the synthesizer; an attribute that it assigns is not kept.

    The LLM within still tells its own handlers of raw answers, and so do the spans of the
    synthesizer's own methods. Where that matters guard the LLM:
    :class:`~protector_guardrails.GuardedLLM`.

    Args:
        synthesizer: The synthesizer within.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a chat model, or a :class:`~protector_guardrails.Detoxifier`.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.

    Attributes:
        synthesizer: The synthesizer within.

    Raises:
        ConfigurationError: If it is no synthesizer, or a name is not known.
    """

    def __init__(
        self,
        synthesizer: BaseSynthesizer,
        *,
        detector: str | HarmDetector = "embedded",
        detoxifier: AnyDetoxifier = "redact",
        policy: PolicyLike | None = None,
        audit: AuditLog | str | PathLike[str] | None = None,
    ) -> None:
        # Without super().__init__(), which would look for a default LLM and set callbacks of the one within.
        if not isinstance(synthesizer, BaseSynthesizer):
            raise ConfigurationError(
                f"a response synthesizer is needed, not a {type(synthesizer).__name__}: "
                "guard() picks the guard for what you have"
            )
        self.synthesizer = synthesizer
        self._guard = HarmResponsePostprocessor(detector=detector, detoxifier=detoxifier, policy=policy, audit=audit)

    def __getattr__(self, name: str) -> Any:
        """Settings that the base class keeps in attributes, such as ``_llm``: those of the synthesizer within."""
        if name.startswith("__") or "synthesizer" not in vars(self):
            raise AttributeError(name)
        return getattr(self.synthesizer, name)

    @property
    def _streaming(self) -> bool:
        return self.synthesizer._streaming

    @_streaming.setter
    def _streaming(self, streaming: bool) -> None:  # chat engines over a query engine switch it
        self.synthesizer._streaming = streaming

    @property
    def callback_manager(self) -> CallbackManager:
        """The callback manager of the synthesizer within."""
        return self.synthesizer.callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self.synthesizer.callback_manager = callback_manager

    def _get_prompts(self) -> Any:
        return self.synthesizer._get_prompts()

    def _update_prompts(self, prompts: Any) -> None:
        self.synthesizer._update_prompts(prompts)

    def _get_prompt_modules(self) -> PromptMixinType:
        return self.synthesizer._get_prompt_modules()

    # What is called ---------------------------------------------------------------------

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> Any:
        """A text, a stream of texts, or a structured answer; judged."""
        return _Making(self.synthesizer, self._guard).get_response(query_str, text_chunks, **response_kwargs)

    async def aget_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> Any:
        """Like :meth:`get_response`, without blocking the event loop."""
        return await _Making(self.synthesizer, self._guard).aget_response(query_str, text_chunks, **response_kwargs)

    def get_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> Any:
        """Like :meth:`get_response`, from messages that may hold images."""
        making = _Making(self.synthesizer, self._guard)
        return making.get_response_from_messages(query_str, message_chunks, **response_kwargs)

    async def aget_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> Any:
        """Like :meth:`get_response_from_messages`, without blocking the event loop."""
        making = _Making(self.synthesizer, self._guard)
        return await making.aget_response_from_messages(query_str, message_chunks, **response_kwargs)

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> Any:
        """A response from nodes, judged."""
        making = _Making(self.synthesizer, self._guard)
        response = making.view.synthesize(query, nodes, additional_source_nodes, **response_kwargs)
        if making.is_judged:
            return response
        item = Item(response, _asked(query))
        del response
        return self._guard.settled(item)

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> Any:
        """Like :meth:`synthesize`, without blocking the event loop."""
        making = _Making(self.synthesizer, self._guard)
        response = await making.view.asynthesize(query, nodes, additional_source_nodes, **response_kwargs)
        if making.is_judged:
            return response
        item = Item(response, _asked(query))
        del response
        return await self._guard.asettled(item)


class _Making:
    """One response in the making.

    Attributes:
        view: A copy of the synthesizer that makes its response of judged answers.
        is_judged: Whether the response was made so; a synthesizer may make it in a way of its own.
    """

    def __init__(self, synthesizer: BaseSynthesizer, guard: HarmResponsePostprocessor) -> None:
        self.is_judged = False
        self._inner = synthesizer
        self._guard = guard
        self._latest: tuple[AnswerItem, Any] | None = None
        self.view: Any = copy.copy(synthesizer)
        for method in (
            self.get_response,
            self.aget_response,
            self.get_response_from_messages,
            self.aget_response_from_messages,
            self._prepare_response_output,
        ):
            setattr(self.view, method.__name__, method)

    def get_response(self, *args: Any, **kwargs: Any) -> Any:
        return self._judged(self._inner.get_response(*args, **kwargs), *args, **kwargs)

    async def aget_response(self, *args: Any, **kwargs: Any) -> Any:
        return await self._ajudged(await self._inner.aget_response(*args, **kwargs), *args, **kwargs)

    def get_response_from_messages(self, *args: Any, **kwargs: Any) -> Any:
        return self._judged(self._inner.get_response_from_messages(*args, **kwargs), *args, **kwargs)

    async def aget_response_from_messages(self, *args: Any, **kwargs: Any) -> Any:
        return await self._ajudged(await self._inner.aget_response_from_messages(*args, **kwargs), *args, **kwargs)

    def _prepare_response_output(self, said: Any, source_nodes: list[NodeWithScore]) -> Any:
        item, answer = self._latest or (None, None)
        if item is None or said is not answer:
            return self._inner._prepare_response_output(said, source_nodes)
        self.is_judged = True
        return item.response(lambda: self._inner._prepare_response_output(said, source_nodes))

    def _judged(self, said: Any, query_str: str, *_: Any, **__: Any) -> Any:
        item = AnswerItem(said, asked_with(query_str))
        del said
        answer = self._guard.settled(item)
        self._latest = item, answer
        return answer

    async def _ajudged(self, said: Any, query_str: str, *_: Any, **__: Any) -> Any:
        item = AnswerItem(said, asked_with(query_str))
        del said
        answer = await self._guard.asettled(item)
        self._latest = item, answer
        return answer


def _asked(query: str | QueryBundle) -> Exchange:
    return asked_with(query) if isinstance(query, str) else asked_with(query_bundle=query)
