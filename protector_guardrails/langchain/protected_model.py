"""``protect(mllm)``: a chat model none of whose ways out shows what was judged harmful."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from pydantic import Field, PrivateAttr, SkipValidation
from pydantic.json_schema import SkipJsonSchema

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors import check_detector
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier, check_detoxifier
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.langchain.answering import Call, Run, current_run, entered
from protector_guardrails.langchain.guard_runnable import Audit
from protector_guardrails.langchain.guards import Guard, guard_for
from protector_guardrails.langchain.private import (
    bindings_in,
    is_configurable,
    map_models,
    models_in,
    privately,
    resolved,
)
from protector_guardrails.policy import Policy, PolicyLike

_Raw = Runnable[LanguageModelInput, Any]


class ProtectedChatModel(BaseChatModel):
    """A chat model whose answers are judged before anybody sees them; make it with :func:`protect`.

    The model within runs in a context of its own: no callback, event stream, graph mode,
    tracer, debug output or cache of the application sees what it says. Outside there is one
    chat model whose answers and tokens were judged. Attributes are the arguments of
    :func:`protect`.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> model = ProtectedChatModel(FakeListChatModel(responses=["At nine."]), detoxifier="refuse")
        >>> model.invoke("When does it open?").text
        'At nine.'
    """

    mllm: SkipValidation[Any] = Field(exclude=True, repr=False)
    detector: SkipValidation[str | HarmDetector] = "embedded"
    detoxifier: SkipValidation[str | Detoxifier] = "redact"
    policy: Policy = Field(default_factory=Policy)
    audit: SkipJsonSchema[Audit] = Field(default=None, exclude=True, repr=False)
    raw_callbacks: Sequence[BaseCallbackHandler] = Field(default=(), exclude=True, repr=False)
    _guard: Guard = PrivateAttr()
    _inner: _Raw | None = PrivateAttr(default=None)

    def __init__(self, mllm: Runnable[LanguageModelInput, Any], **kwargs: Any) -> None:
        if not isinstance(mllm, Runnable):
            raise ConfigurationError(f"protect() takes a LangChain chat model, not a {type(mllm).__name__}")
        check_detector(kwargs.get("detector", "embedded"))
        kwargs["detoxifier"] = check_detoxifier(kwargs.get("detoxifier", "redact"))
        inner = None if is_configurable(mllm) else privately(mllm)
        super().__init__(**{"mllm": mllm, **kwargs})
        self._inner = inner
        self._guard = guard_for(self.detector, self.policy, self.detoxifier, self.audit)

    # What it says of itself ----------------------------------------------------------

    @property
    def _model(self) -> BaseChatModel | None:
        return next(iter(models_in(self.mllm)), None)

    @property
    def model_name(self) -> str | None:
        """The name of the model within; agents choose the way to structured output by it."""
        names = (getattr(self._model, key, None) for key in ("model_name", "model", "model_id"))
        return next((name for name in names if isinstance(name, str)), None)

    @property
    def _llm_type(self) -> str:
        return f"protected-{self._model._llm_type if self._model else type(self.mllm).__name__}"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        models = models_in(self.mllm)
        return {
            **(models[0]._identifying_params if models else {}),
            "detector": _name(self.detector),
            "detoxifier": _name(self.detoxifier),
            "policy": self.policy.model_dump(mode="json"),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        if self._model is None:
            return super()._get_ls_params(stop, **kwargs)
        return self._model._get_ls_params(stop, **kwargs)

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # The key of the cache: what answers, what it is bound to, and what judges.
        models = [model._get_llm_string(stop, **kwargs) for model in models_in(self.mllm)]
        bound = [sorted(binding.kwargs.items()) for binding in bindings_in(self.mllm)]
        return str([models, bound, sorted(self._identifying_params.items()), sorted(kwargs.items())])

    def get_token_ids(self, text: str) -> list[int]:
        """As the model counts."""
        return self._model.get_token_ids(text) if self._model else super().get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """As the model counts."""
        return self._model.get_num_tokens(text) if self._model else super().get_num_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the model counts."""
        if self._model is None:
            return super().get_num_tokens_from_messages(messages, tools)
        return self._model.get_num_tokens_from_messages(messages, tools)

    # Tools and structured output -------------------------------------------------------

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools as the model does; its tool calls are judged like its text."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound = self._unconfigured("bind_tools").bind_tools(tools, **kwargs)
        return self._around_models_of(bound, "bind_tools")

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """Structured output as the model makes it, parsed from an answer that was judged.

        A refusal does not parse: the result is then what the parser makes of it, None or
        an exception.
        """
        structured = self._unconfigured("with_structured_output").with_structured_output(schema, **kwargs)
        return self._around_models_of(structured, "with_structured_output")

    def _unconfigured(self, method: str) -> Any:
        inner = resolved(self.mllm, ensure_config({})) if is_configurable(self.mllm) else self.mllm
        if not hasattr(inner, method):
            raise NotImplementedError(f"{type(inner).__name__}, which is protected, has no {method}")
        return inner

    def _around_models_of(self, made: Runnable[Any, Any], method: str) -> Runnable[Any, Any]:
        around: list[BaseChatModel] = []

        def protected(model: BaseChatModel) -> BaseChatModel:
            around.append(self._around(model))
            return around[-1]

        guarded: Runnable[Any, Any] = map_models(made, protected)
        if not around:
            raise NotImplementedError(
                f"{method} of {type(self.mllm).__name__} gives a {type(made).__name__}, unguarded"
            )
        return guarded

    def _around(self, model: BaseChatModel) -> ProtectedChatModel:
        copy = self.model_copy(update={"mllm": model})
        copy._inner = privately(model)
        return copy

    # Answering -------------------------------------------------------------------------

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer with what was judged."""
        with entered(Run.begun(config, self.callbacks)) as run:
            return super().invoke(input, run.config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Like :meth:`invoke`, without blocking the event loop."""
        with entered(Run.begun(config, self.callbacks)) as run:
            return await super().ainvoke(input, run.config, stop=stop, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Stream what was judged, when ``policy.streaming`` allows."""
        with entered(Run.begun(config, self.callbacks)) as run:
            chunks = super().stream(input, run.config, stop=stop, **kwargs)
            first = next(chunks, None)  # in which _stream begins and takes its run
        try:
            if first is not None:
                yield first
                yield from chunks
        finally:  # also of a reader who leaves after the first chunk
            chunks.close()  # type: ignore[attr-defined]

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Like :meth:`stream`, without blocking the event loop."""
        with entered(Run.begun(config, self.callbacks)) as run:
            chunks = super().astream(input, run.config, stop=stop, **kwargs)
            first = await anext(chunks, None)
        try:
            if first is not None:
                yield first
                async for chunk in chunks:
                    yield chunk
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    def _call(self, messages: list[BaseMessage], stop: Any, run_manager: Any, kwargs: Mapping[str, Any]) -> Call:
        run = current_run(run_manager)
        inner = self._inner
        if inner is None:
            inner = privately(resolved(self.mllm, run.config))
        options = dict(kwargs) if stop is None else {**kwargs, "stop": stop}
        return Call(inner, self._guard, messages, options=options, run=run, raw_callbacks=self.raw_callbacks)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self._call(messages, stop, run_manager, kwargs).answer())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await self._call(messages, stop, run_manager, kwargs).aanswer())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages, stop, run_manager, kwargs)
        for chunk in call.stream():
            yield ChatGenerationChunk(message=chunk)
        if call.error is not None:
            raise call.error

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(messages, stop, run_manager, kwargs)
        chunks = call.astream()
        try:
            async for chunk in chunks:
                yield ChatGenerationChunk(message=chunk)
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
        if call.error is not None:
            raise call.error


def _result(answer: AIMessage | Exception) -> ChatResult:
    if isinstance(answer, Exception):
        raise answer
    return ChatResult(generations=[ChatGeneration(message=answer)])


def _name(part: object) -> str:
    return part if isinstance(part, str) else str(getattr(part, "name", type(part).__name__))


def protect(
    mllm: Runnable[LanguageModelInput, Any],
    *,
    detector: str | HarmDetector = "embedded",
    detoxifier: AnyDetoxifier = "redact",
    policy: PolicyLike | None = None,
    audit: AuditLog | str | PathLike[str] | None = None,
    raw_callbacks: Sequence[BaseCallbackHandler] = (),
) -> ProtectedChatModel:
    """Put a chat model under guard. Use this form with agents, graphs and streams.

    The result is a chat model like the one within: it can be invoked, batched, streamed,
    bound to tools, asked for structured output, cached and retried. What it says was
    judged, and nothing that listens outside (callbacks, event streams, tracers, LangGraph's
    stream modes, debug output, caches) sees anything else. Tool calls are judged with the
    text; a harmful one does not leave, nor does anything else of its message.

    What is judged is the answer. What else the model does is out of reach: log lines of
    its provider's library, files it writes, what its provider keeps.

    Exceptions of the model pass, without the frames in which its answer may lie, unless
    their text is judged harmful: then :class:`~protector_guardrails.errors.ModelError` is
    raised instead.

    Args:
        mllm: A chat model, or bindings, retries or fallbacks of chat models, or one with
            configurable fields. Its cache and callbacks move to the protected model; the
            one given is left as it is.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a :class:`~protector_guardrails.Detoxifier`, or a chat model to rewrite.
        policy: Thresholds, actions, limits, and whether streams are held back in full
            (the default) or judged in windows.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.
        raw_callbacks: Handlers that see the runs of the model within, raw answers
            included: for debugging, in a place that nobody else reads.

    Raises:
        ConfigurationError: If it is no model, if a name is not known, or if listeners are
            attached to the model.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from protector_guardrails import protect
        >>> model = protect(FakeListChatModel(responses=["For eight minutes."]))
        >>> answer = model.invoke("How long do I boil an egg?")
        >>> answer.content, answer.response_metadata["protector"]["harmful"]
        ('For eight minutes.', False)
    """
    moved: dict[str, Any] = {}
    if isinstance(mllm, BaseChatModel):
        names = ("cache", "callbacks", "tags", "metadata", "profile", "disable_streaming")
        moved = {name: getattr(mllm, name) for name in names if getattr(mllm, name, None) is not None}
    return ProtectedChatModel(
        mllm=mllm,
        detector=detector,
        detoxifier=detoxifier,
        policy=Policy() if policy is None else Policy.model_validate(policy),
        audit=audit,
        raw_callbacks=raw_callbacks,
        **moved,
    )
