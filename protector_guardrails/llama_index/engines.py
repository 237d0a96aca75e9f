"""Query engines and chat engines whose answers are judged before they leave."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from os import PathLike
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.memory.types import BaseMemory
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.llama_index.postprocessor import HarmResponsePostprocessor
from protector_guardrails.llama_index.responses import Item, asked_with
from protector_guardrails.llama_index.turn import OwnTurn, Turn
from protector_guardrails.policy import PolicyLike


class GuardedQueryEngine(BaseQueryEngine):
    """A query engine that judges what another one answers.

    ``query``, ``aquery``, ``synthesize`` and ``asynthesize`` return what
    :class:`~protector_guardrails.HarmResponsePostprocessor` makes of the answer, streams
    included. It keeps the engine's callback manager and prompts.

    Handlers of instrumentation and callbacks that listen to the engine within, its
    synthesizer and its LLM still see the raw answer. Where that matters guard the LLM:
    :class:`~protector_guardrails.GuardedLLM`.

    Args:
        query_engine: The engine within; it is left as it is.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a chat model, or a :class:`~protector_guardrails.Detoxifier`.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.

    Attributes:
        query_engine: The engine within.

    Raises:
        ConfigurationError: If it is no query engine, or a name is not known.

    Example:
        >>> from llama_index.core import SummaryIndex
        >>> from llama_index.core.llms import MockLLM
        >>> from llama_index.core.schema import TextNode
        >>> index = SummaryIndex([TextNode(text="The museum opens at nine.")])
        >>> engine = GuardedQueryEngine(index.as_query_engine(llm=MockLLM(max_tokens=8)), detoxifier="refuse")
        >>> engine.query("When does it open?").metadata["protector"]["action"]
        'pass'
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        *,
        detector: str | HarmDetector = "embedded",
        detoxifier: AnyDetoxifier = "redact",
        policy: PolicyLike | None = None,
        audit: AuditLog | str | PathLike[str] | None = None,
    ) -> None:
        if not isinstance(query_engine, BaseQueryEngine):
            raise ConfigurationError(_not_an("query engine", query_engine))
        self.query_engine = query_engine
        self._guard = HarmResponsePostprocessor(detector=detector, detoxifier=detoxifier, policy=policy, audit=audit)
        # An engine that overrides query() is asked by it; of any other the answer is taken before query() tells of it.
        self._by_name = _overrides(query_engine, BaseQueryEngine, "query")
        super().__init__(callback_manager=query_engine.callback_manager)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self.query_engine}

    def _query(self, query_bundle: QueryBundle) -> Any:
        ask = self.query_engine.query if self._by_name else self.query_engine._query
        return self._guard.postprocess_response(ask(query_bundle), query_bundle=query_bundle)

    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        ask = self.query_engine.aquery if self._by_name else self.query_engine._aquery
        return await self._guard.apostprocess_response(await ask(query_bundle), query_bundle=query_bundle)

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """What the engine within retrieves; a :class:`HarmNodePostprocessor` in it judges that, not this guard."""
        return self.query_engine.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Like :meth:`retrieve`, without blocking the event loop, if the engine within can."""
        nodes: list[NodeWithScore] = await self.query_engine.aretrieve(query_bundle)  # type: ignore[attr-defined]
        return nodes

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> Any:
        """An answer from nodes, judged."""
        return self._guard.postprocess_response(
            self.query_engine.synthesize(query_bundle, nodes, additional_source_nodes), query_bundle=query_bundle
        )

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> Any:
        """Like :meth:`synthesize`, without blocking the event loop."""
        return await self._guard.apostprocess_response(
            await self.query_engine.asynthesize(query_bundle, nodes, additional_source_nodes),
            query_bundle=query_bundle,
        )


class GuardedChatEngine(BaseChatEngine):
    """A chat engine that judges what another one answers, and remembers what left only.

    An answer goes to the engine's memory once it was judged: as it came if it is safe, as
    its rewrite or refusal otherwise; also where ``Policy(on_harm="raise")`` raises. For this
    each turn works on a shallow copy of the engine whose memory holds answers back; an
    attribute that the engine assigns in a turn is not kept. Messages that an engine writes
    on its way to the answer, such as tool calls, are judged by nobody and not remembered.

    An engine that has no ``_memory`` to be replaced is reset after each turn, and told
    the safe history with the next one.

    A streamed answer is read, judged and remembered as its reader goes on. A reader who
    leaves early stops the model, and what had left is remembered. The engine within reads
    its model in a thread or task of its own, whose events show raw text to instrumentation
    handlers; those and the callbacks of the LLM are only silent with a
    :class:`~protector_guardrails.GuardedLLM` inside.

    Args:
        chat_engine: The engine within; its memory is used, it is otherwise left as it is.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a chat model, or a :class:`~protector_guardrails.Detoxifier`.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.

    Attributes:
        chat_engine: The engine within. What it answers itself is not judged.

    Raises:
        ConfigurationError: If it is no chat engine, or a name is not known.

    Example:
        >>> from llama_index.core.chat_engine import SimpleChatEngine
        >>> from llama_index.core.llms import MockLLM
        >>> engine = GuardedChatEngine(SimpleChatEngine.from_defaults(llm=MockLLM()), detoxifier="refuse")
        >>> engine.chat("Good morning").metadata["protector"]["action"]
        'pass'
    """

    def __init__(
        self,
        chat_engine: BaseChatEngine,
        *,
        detector: str | HarmDetector = "embedded",
        detoxifier: AnyDetoxifier = "redact",
        policy: PolicyLike | None = None,
        audit: AuditLog | str | PathLike[str] | None = None,
    ) -> None:
        if not isinstance(chat_engine, BaseChatEngine):
            raise ConfigurationError(_not_an("chat engine", chat_engine))
        self.chat_engine = chat_engine
        self.callback_manager = getattr(chat_engine, "callback_manager", None)
        self._guard = HarmResponsePostprocessor(detector=detector, detoxifier=detoxifier, policy=policy, audit=audit)
        self._own: list[ChatMessage] | None = None
        if not isinstance(getattr(chat_engine, "_memory", None), BaseMemory):
            self._own = list(chat_engine.chat_history)

    def chat(self, message: Any, chat_history: list[ChatMessage] | None = None, **kwargs: Any) -> Any:
        """Say something and get an answer that was judged.

        Args:
            message: What to say.
            chat_history: What was said before, instead of what the memory holds.
            **kwargs: What else the engine within takes.

        Raises:
            HarmfulResponseError: Under ``Policy(on_harm="raise")``; of a stream, while it is read.
        """
        engine, turn = self._turn(message, chat_history)
        item = Item(engine.chat(message, turn.history, **kwargs), _asked(message), turn)
        return self._guard.settled(item)

    async def achat(self, message: Any, chat_history: list[ChatMessage] | None = None, **kwargs: Any) -> Any:
        """Like :meth:`chat`, without blocking the event loop."""
        engine, turn = self._turn(message, chat_history)
        item = Item(await engine.achat(message, turn.history, **kwargs), _asked(message), turn)
        return await self._guard.asettled(item)

    def stream_chat(self, message: Any, chat_history: list[ChatMessage] | None = None, **kwargs: Any) -> Any:
        """Like :meth:`chat`, with an answer that can be read while it is written."""
        engine, turn = self._turn(message, chat_history)
        item = Item(engine.stream_chat(message, turn.history, **kwargs), _asked(message), turn)
        return self._guard.settled(item)

    async def astream_chat(self, message: Any, chat_history: list[ChatMessage] | None = None, **kwargs: Any) -> Any:
        """Like :meth:`stream_chat`, without blocking the event loop."""
        engine, turn = self._turn(message, chat_history)
        item = Item(await engine.astream_chat(message, turn.history, **kwargs), _asked(message), turn)
        return await self._guard.asettled(item)

    def reset(self) -> None:
        """Forget the conversation."""
        self.chat_engine.reset()
        if self._own is not None:
            self._own = []

    @property
    def chat_history(self) -> list[ChatMessage]:
        """What was said, in the form in which it left."""
        return self.chat_engine.chat_history if self._own is None else list(self._own)

    def _turn(self, message: Any, chat_history: list[ChatMessage] | None) -> tuple[Any, Turn | OwnTurn]:
        """The engine for one turn, and what sees to the memory."""
        if self._own is not None:
            if chat_history is not None:
                self._own = list(chat_history)
            return self.chat_engine, OwnTurn(self.chat_engine, self._own, message)
        engine: Any = copy.copy(self.chat_engine)
        turn = Turn(engine._memory, chat_history)
        engine._memory = turn.memory
        return engine, turn


def _asked(message: Any) -> Any:
    return asked_with(message.content if isinstance(message, ChatMessage) else str(message))


def _overrides(thing: object, base: type, name: str) -> bool:
    # Statically: LlamaIndex wraps methods in descriptors that give another object at each look.
    return inspect.getattr_static(type(thing), name) is not inspect.getattr_static(base, name)


def _not_an(what: str, given: object) -> str:
    return f"a {what} is needed, not a {type(given).__name__}: guard() picks the guard for what you have"
