"""``GuardedLLM(llm)``: an LLM none of whose ways out shows what was judged harmful."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from typing import Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, SerializeAsAny
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.llms import LLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.loading import RECOGNIZED_LLMS, load_llm
from llama_index.core.tools import BaseTool

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.llama_index.answering import NO_MESSAGE, NO_TEXT, Call, delivered
from protector_guardrails.llama_index.component import GuardComponent
from protector_guardrails.llama_index.messages import Response, read_question
from protector_guardrails.protector import Protector
from protector_guardrails.types import Exchange

_MOVED = (
    "callback_manager",
    "system_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
)
"""What is attached to an LLM and works from outside: listeners hear, and parsers read, what was judged."""


class GuardedLLM(GuardComponent, LLM):
    """An LLM whose answers are judged before anybody sees them.

    It stands wherever the LLM within can stand: query and chat engines, agents, workflows,
    structured prediction, ``Settings.llm``. Around an LLM that calls functions it is a
    :class:`FunctionCallingLLM` too, around any other it is none. Tool calls are judged with
    the text; a harmful one does not leave, nor does anything else of its message.

    The verdict stands in ``response.additional_kwargs["protector"]``, in a stream in that of
    one response. It is not in the message, where memories would keep it and providers get it.

    The LLM within runs in a context of its own: neither instrumentation handlers nor callback
    managers hear what it says. What they hear is what the guarded LLM says: the ordinary
    events and spans, with answers that were judged, and the guard's own events. Out of reach
    is what an LLM does beside answering: log lines of its provider's library, files, what its
    provider keeps, and what it tells in bare threads of its own.

    Structured prediction goes by tool calls or by text, as LlamaIndex does it for any LLM, not
    by a JSON mode of the provider. A refusal does not parse: the result is what the program
    makes of it, mostly an exception.

    Exceptions of the LLM pass, without the frames in which its answer may lie, unless their
    text is judged harmful: then :class:`~protector_guardrails.errors.ModelError` is raised.

    Args:
        llm: The LLM. It is left as it is; its callback manager, prompts, parsers and program
            mode are used outside from now on.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a chat model, or a :class:`~protector_guardrails.Detoxifier`.
        policy: Thresholds, actions, limits, and whether streams are held back in full
            (the default) or judged in windows.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.
        **kwargs: Fields of :class:`LLM`, such as ``system_prompt``, in place of those of ``llm``.

    Raises:
        ConfigurationError: If it is no LLM of LlamaIndex, or if a name is not known.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from protector_guardrails.llama_index.llm import GuardedLLM
        >>> response = GuardedLLM(MockLLM()).complete("Boil an egg for eight minutes.")
        >>> response.text, response.additional_kwargs["protector"]["harmful"]
        ('Boil an egg for eight minutes.', False)
    """

    llm: SerializeAsAny[LLM] = Field(frozen=True, repr=False)

    def __new__(cls, llm: Any = None, **_: Any) -> Self:
        """The class that fits the LLM."""
        fitting: Any = _GuardedFunctionCallingLLM if cls is GuardedLLM and _calls_functions(llm) else cls
        made: Self = super().__new__(fitting)
        return made

    def __init__(self, llm: LLM, **kwargs: Any) -> None:
        if not isinstance(llm, LLM):
            raise ConfigurationError(
                f"GuardedLLM takes an LLM of LlamaIndex, not a {type(llm).__name__}: use protect() for a model of "
                "LangChain, and for a MultiModalLLM the LLM class of its provider, which reads ImageBlocks"
            )
        super().__init__(**{"llm": llm, **{name: getattr(llm, name) for name in _MOVED}, **kwargs})

    # What it says of itself ----------------------------------------------------------

    @classmethod
    def class_name(cls) -> str:
        """Its name in serialised form."""
        return "GuardedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """That of the LLM within."""
        return self.llm.metadata

    def to_payload(self) -> dict[str, Any]:
        """What events say of the LLM: what they say of the one within, and that it is guarded."""
        return {**self.llm.to_payload(), "guarded_by": self.class_name()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Read what ``to_dict`` wrote.

        Args:
            data: The dict.
            **kwargs: What takes the place of an entry, such as ``llm=``, where LlamaIndex cannot load it by its name.

        Raises:
            ConfigurationError: If the LLM is not known by its name.
        """
        fields = {**data, **kwargs}
        if isinstance(fields.get("llm"), Mapping):
            name = fields["llm"].get("class_name")
            try:
                fields["llm"] = load_llm(dict(fields["llm"]))
            except ValueError:
                raise ConfigurationError(f"LlamaIndex cannot load an LLM named {name!r}: pass it as llm=") from None
        loaded: Self = super().from_dict(fields)
        return loaded

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {name: getattr(self, name) for name in ("llm", *GuardComponent.model_fields)}
        for name in _MOVED:  # anew, unless it was replaced outside; listeners stay behind
            if name != "callback_manager" and getattr(self, name) is not getattr(self.llm, name):
                settings[name] = getattr(self, name)
        return _rebuilt, (GuardedLLM, settings)

    # Answering -------------------------------------------------------------------------

    def _call(self, asked: Sequence[ChatMessage] | str, protector: Protector) -> Call:
        question = read_question(asked)
        model = self.metadata.model_name
        exchange = Exchange(
            response="",
            question=question.text,
            images=question.images,
            model=None if model == "unknown" else model,
            run_id=active_span_id.get(),
        )
        return Call(self.llm, protector, exchange, told=question.told)

    def _begun(self, asked: Sequence[ChatMessage] | str) -> Call:
        return self._call(asked, self.protector)

    async def _abegun(self, asked: Sequence[ChatMessage] | str) -> Call:
        return self._call(asked, await self.aprotector())

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat; the response was judged."""
        answer: ChatResponse = delivered(self._begun(messages).answer(self.llm.chat, messages, **kwargs))
        return answer

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Like :meth:`chat`, without blocking the event loop."""
        call = await self._abegun(messages)
        answer: ChatResponse = delivered(await call.aanswer(self.llm.achat, messages, **kwargs))
        return answer

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Complete; the response was judged."""
        call = self._begun(str(prompt))
        answer: CompletionResponse
        answer = delivered(call.answer(self.llm.complete, prompt, formatted=formatted, **kwargs))
        return answer

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Like :meth:`complete`, without blocking the event loop."""
        call = await self._abegun(str(prompt))
        answer: CompletionResponse
        answer = delivered(await call.aanswer(self.llm.acomplete, prompt, formatted=formatted, **kwargs))
        return answer

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream what was judged, when ``policy.streaming`` allows."""
        call = self._begun(messages)
        return _stream(call, delivered(call.opened(self.llm.stream_chat, messages, **kwargs)), NO_MESSAGE)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Like :meth:`stream_chat`, without blocking the event loop."""
        call = await self._abegun(messages)
        return _astream(call, delivered(await call.aopened(self.llm.astream_chat, messages, **kwargs)), NO_MESSAGE)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Stream what was judged, when ``policy.streaming`` allows."""
        call = self._begun(str(prompt))
        opened = delivered(call.opened(self.llm.stream_complete, prompt, formatted=formatted, **kwargs))
        return _stream(call, opened, NO_TEXT)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Like :meth:`stream_complete`, without blocking the event loop."""
        call = await self._abegun(str(prompt))
        opened = delivered(await call.aopened(self.llm.astream_complete, prompt, formatted=formatted, **kwargs))
        return _astream(call, opened, NO_TEXT)


def _stream(call: Call, opened: Iterator[Any], empty: Response) -> Generator[Any, None, None]:
    yield from call.stream(opened, empty)
    if call.error is not None:
        raise call.error


async def _astream(call: Call, opened: AsyncIterator[Any], empty: Response) -> AsyncGenerator[Any, None]:
    responses = call.astream(opened, empty)
    try:
        async for response in responses:
            yield response
    finally:
        await responses.aclose()  # type: ignore[attr-defined]
    if call.error is not None:
        raise call.error


class _GuardedFunctionCallingLLM(GuardedLLM, FunctionCallingLLM):
    """A guarded LLM that calls functions as the one within does.

    What is sent to offer tools, and how calls are read from a response, is the LLM's own.
    """

    def _prepare_chat_with_tools(  # noqa: PLR0917 - LlamaIndex's signature
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        llm: Any = self.llm
        # Some LLMs cannot be told that a tool is required; those of LlamaIndex's class know it.
        prepare = getattr(llm, "_prepare_chat_with_tools_compat", None) or llm._prepare_chat_with_tools
        prepared: dict[str, Any] = prepare(
            tools,
            user_msg=user_msg,
            chat_history=chat_history,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )
        return prepared

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        if not isinstance(self.llm, FunctionCallingLLM):
            return response
        return self.llm._validate_chat_with_tools_response(
            response, tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **kwargs
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of a response, as the LLM within reads them."""
        llm: Any = self.llm
        calls: list[ToolSelection] = llm.get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )
        return calls

    # An LLM that chats with tools in a way of its own is asked in that way.

    def chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> ChatResponse:
        """Chat with tools; the response was judged."""
        if ask := self._own("chat_with_tools"):
            options = _named(tools, args, kwargs)
            answer: ChatResponse = self._own_chat(_messages_of(options), ask=ask, **options)
            return answer
        return super().chat_with_tools(tools, *args, **kwargs)

    async def achat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> ChatResponse:
        """Like :meth:`chat_with_tools`, without blocking the event loop."""
        if ask := self._own("achat_with_tools"):
            options = _named(tools, args, kwargs)
            answer: ChatResponse = await self._own_achat(_messages_of(options), ask=ask, **options)
            return answer
        return await super().achat_with_tools(tools, *args, **kwargs)

    def stream_chat_with_tools(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> ChatResponseGen:
        """Stream what was judged, when ``policy.streaming`` allows."""
        if ask := self._own("stream_chat_with_tools"):
            options = _named(tools, args, kwargs)
            responses: ChatResponseGen = self._own_stream(_messages_of(options), ask=ask, **options)
            return responses
        return super().stream_chat_with_tools(tools, *args, **kwargs)

    async def astream_chat_with_tools(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Like :meth:`stream_chat_with_tools`, without blocking the event loop."""
        if ask := self._own("astream_chat_with_tools"):
            options = _named(tools, args, kwargs)
            responses: ChatResponseAsyncGen = await self._own_astream(_messages_of(options), ask=ask, **options)
            return responses
        return await super().astream_chat_with_tools(tools, *args, **kwargs)

    def _own(self, name: str) -> Any:
        own = getattr(type(self.llm), name, None)
        return getattr(self.llm, name) if own is not None and own is not getattr(FunctionCallingLLM, name) else None

    @llm_chat_callback()
    def _own_chat(self, messages: Sequence[ChatMessage], *, ask: Any, **options: Any) -> ChatResponse:
        answer: ChatResponse = delivered(self._begun(messages).answer(ask, **options))
        return answer

    @llm_chat_callback()
    async def _own_achat(self, messages: Sequence[ChatMessage], *, ask: Any, **options: Any) -> ChatResponse:
        call = await self._abegun(messages)
        answer: ChatResponse = delivered(await call.aanswer(ask, **options))
        return answer

    @llm_chat_callback()
    def _own_stream(self, messages: Sequence[ChatMessage], *, ask: Any, **options: Any) -> ChatResponseGen:
        call = self._begun(messages)
        return _stream(call, delivered(call.opened(ask, **options)), NO_MESSAGE)

    @llm_chat_callback()
    async def _own_astream(self, messages: Sequence[ChatMessage], *, ask: Any, **options: Any) -> ChatResponseAsyncGen:
        call = await self._abegun(messages)
        return _astream(call, delivered(await call.aopened(ask, **options)), NO_MESSAGE)


_OPTIONS = ("user_msg", "chat_history", "verbose", "allow_parallel_tool_calls", "tool_required")


def _named(tools: Sequence[BaseTool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": tools, **dict(zip(_OPTIONS, args, strict=False)), **kwargs}


def _messages_of(options: Mapping[str, Any]) -> list[ChatMessage]:
    asked = options.get("user_msg")
    if isinstance(asked, str):
        asked = ChatMessage(content=asked)
    return [*(options.get("chat_history") or []), *([asked] if asked else [])]


def _calls_functions(llm: Any) -> bool:
    return isinstance(llm, FunctionCallingLLM) or callable(getattr(type(llm), "achat_with_tools", None))


def _rebuilt(cls: type[GuardedLLM], settings: dict[str, Any]) -> GuardedLLM:
    return cls(**settings)


RECOGNIZED_LLMS[GuardedLLM.class_name()] = GuardedLLM  # by which pipelines and extractors load their LLMs
