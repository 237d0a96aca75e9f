"""The detoxifier that has a chat model, of LangChain or LlamaIndex, write a safe answer."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.detoxifiers.echo import echo_share
from protector_guardrails.detoxifiers.rewrite_prompt import PROMPT_VERSION, RewritePrompt, answer_in, rewrite_prompt
from protector_guardrails.errors import ConfigurationError, DetoxifierError
from protector_guardrails.flows import adrive, drive
from protector_guardrails.threads import start_in_thread
from protector_guardrails.types import Exchange, Verdict

_log = logging.getLogger(__name__)

_REWRITERS = {
    ("langchain_core", "Runnable"): ("protector_guardrails.langchain.rewriting", "LangChainRewriter"),
    ("llama_index", "LLM"): ("protector_guardrails.llama_index.rewriting", "LlamaIndexRewriter"),
}
"""Package and name of a class, to what asks objects of that class; named, so that no framework has to be imported."""


class _Invocable(Protocol):
    @property
    def invoke(self) -> Callable[..., Any]: ...

    @property
    def ainvoke(self) -> Callable[..., Any]: ...


class _Chatting(Protocol):
    @property
    def chat(self) -> Callable[..., Any]: ...

    @property
    def achat(self) -> Callable[..., Any]: ...


RewritingModel = _Invocable | _Chatting
"""A chat model of LangChain, or an ``LLM`` of LlamaIndex."""


class Rewriter(Protocol):
    """What asks a chat model of one framework, in private: nobody who listens hears prompt or answer."""

    @property
    def name(self) -> str:
        """Name of the model."""

    def ask(self, prompt: RewritePrompt) -> str:
        """The text of the model's answer."""

    async def aask(self, prompt: RewritePrompt) -> str:
        """Like :meth:`ask`, without blocking the event loop."""


@dataclass(frozen=True, slots=True)
class _Failed:
    error: str


class ChatModelDetoxifier(Detoxifier):
    """Has a chat model write a safe answer in place of a harmful one.

    The model reads text only. Images are withheld: without them an aligned model meets the
    question in the language that its alignment covers, the observation behind ECSO (arXiv
    2403.09572). So even the multimodal model that gave the harmful answer may rewrite it. What
    it writes is judged by the guard like any rewrite.

    Where a detoxifier is asked for, the model may stand itself:
    ``DetoxifierRunnable(chat_model)`` is ``DetoxifierRunnable(ChatModelDetoxifier(chat_model))``.

    What is sent to the model: the question, what the images show where the caller said it,
    and the text of the harmful response, quoted as material between tags that it cannot
    close. Not sent: images, reasoning, tool calls, earlier turns, the verdict.

    The call is private. No callback, event stream, tracer, debug output or cache outside shows
    its prompt, which quotes the harmful response, nor its answer before it was judged.
    Counters of tokens that listen to callbacks do not count it, either.

    An answer that repeats the response (see
    :func:`~protector_guardrails.detoxifiers.echo.echo_share`) counts as failed: the question
    is asked once more without it, and if that repeats it, too, the refusal leaves. Where the
    model fails for one exchange of a batch, the refusal leaves for that one.

    Limits:

    - A small or unaligned model may follow what a response tells it to do. The tags keep
      the response in its place; whether the model respects it is the model's affair.
    - The model's provider gets the question and, with ``show_response``, the harmful response. A
      provider may refuse such input, or count it against the account that sends it.
    - Each rewrite is one call of the model, or two after an echo. ``Policy.timeout_s`` covers
      them. Sync calls that outlive it are abandoned, not stopped.
    - Only a chat model that takes a system message will do; tools and streaming are not used.

    Args:
        model: A LangChain chat model (bindings, retries and fallbacks of chat models, too), or
            a LlamaIndex ``LLM``. It is left as it is.
        show_response: Whether the model sees the harmful response, as the detoxifier of the
            paper does (arXiv 2401.02906). False: it answers the question anew, as in ECSO, and
            where the question is not known, the refusal leaves.
        describe_images: Whether ``Image.description`` joins the question. True, since a
            question about an image means nothing without it, since an instruction hidden in
            an image becomes text that the model's alignment covers, and since the detector
            judges the same question. False where descriptions must not reach this model.
        max_concurrency: Calls of the model at a time, for one batch.
        echo_limit: Share in [0, 1] of the response's runs of five words above which an answer
            repeats it; 1 turns the check off.

    Raises:
        ConfigurationError: If it is no chat model, if listeners are attached to it, or if an
            option is out of range.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from protector_guardrails import Exchange, Verdict
        >>> from protector_guardrails.detoxifiers.chat_model import ChatModelDetoxifier
        >>> model = FakeListChatModel(responses=["Ask the owner for a key."])
        >>> exchange = Exchange(question="How do I get in?", response="Break the window.")
        >>> ChatModelDetoxifier(model).detoxify([exchange], [Verdict(harmful=True, score=0.9)])
        ['Ask the owner for a key.']
    """

    def __init__(
        self,
        model: RewritingModel,
        *,
        show_response: bool = True,
        describe_images: bool = True,
        max_concurrency: int = 4,
        echo_limit: float = 0.5,
    ) -> None:
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency is a number of calls and at least 1, not {max_concurrency!r}")
        if not 0.0 <= echo_limit <= 1.0:
            raise ConfigurationError(f"echo_limit must be a share in [0, 1], not {echo_limit!r}")
        self.model = model
        self.show_response = show_response
        self.describe_images = describe_images
        self.max_concurrency = max_concurrency
        self.echo_limit = echo_limit
        self._rewriter = _rewriter_for(model)

    @property
    def name(self) -> str:
        """Which model rewrites, and the version of what it is asked."""
        return f"chat-model@{PROMPT_VERSION}:{self._rewriter.name}"

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:  # noqa: ARG002
        """Rewrite a batch, several exchanges at a time; an empty text where the model failed.

        Raises:
            DetoxifierError: If the model failed for each of them.
        """
        if len(exchanges) == 1:
            return self._settled([self._rewritten(exchanges[0])])
        results: dict[int, str | _Failed] = {}
        waiting = deque(enumerate(exchanges))

        def work() -> None:
            while True:
                try:
                    index, exchange = waiting.popleft()
                except IndexError:
                    return
                results[index] = self._rewritten(exchange)

        workers = [start_in_thread(work) for _ in range(min(self.max_concurrency, len(exchanges)))]
        try:
            for worker in workers:
                worker.result()
        finally:  # also of an interruption: what has not begun need not begin
            waiting.clear()
        return self._settled([results[index] for index in range(len(exchanges))])

    async def adetoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:  # noqa: ARG002
        """Like :meth:`detoxify`, with the model's own async calls."""
        free = asyncio.Semaphore(self.max_concurrency)

        async def rewritten(exchange: Exchange) -> str | _Failed:
            async with free:
                return await self._arewritten(exchange)

        return self._settled(await asyncio.gather(*map(rewritten, exchanges)))

    def _rewritten(self, exchange: Exchange) -> str | _Failed:
        try:
            return drive(self._rewriting(exchange), self._rewriter.ask)
        except Exception as error:
            return self._failed(error)

    async def _arewritten(self, exchange: Exchange) -> str | _Failed:
        try:
            return await adrive(self._rewriting(exchange), self._rewriter.aask)
        except Exception as error:
            return self._failed(error)

    def _rewriting(self, exchange: Exchange) -> Generator[RewritePrompt, str, str]:
        for shown in (True, False) if self.show_response else (False,):
            prompt = rewrite_prompt(exchange, show_response=shown, describe_images=self.describe_images)
            if prompt is None:
                continue
            answer = answer_in((yield prompt), prompt)
            if echo_share(answer, exchange.response) <= self.echo_limit:
                return answer
        return ""

    def _failed(self, error: Exception) -> _Failed:
        # Its message may quote the prompt, and with it the response.
        _log.warning("the rewriting model failed: %s", type(error).__name__)
        return _Failed(type(error).__name__)

    def _settled(self, results: Sequence[str | _Failed]) -> list[str]:
        failures = {result.error for result in results if isinstance(result, _Failed)}
        if failures and all(isinstance(result, _Failed) for result in results):
            raise DetoxifierError(f"{self.name} failed: {', '.join(sorted(failures))} was raised")
        return ["" if isinstance(result, _Failed) else result for result in results]


def is_rewriting_model(candidate: object) -> bool:
    """Whether it is a model, or something like it, of a framework that is known; neither framework is imported."""
    return _rewriter_name(candidate) is not None


def _rewriter_name(candidate: object) -> tuple[str, str] | None:
    kinds = ((cls.__module__.partition(".")[0], cls.__name__) for cls in type(candidate).__mro__)
    return next((_REWRITERS[kind] for kind in kinds if kind in _REWRITERS), None)


def _rewriter_for(model: object) -> Rewriter:
    name = _rewriter_name(model)
    if name is None:
        raise ConfigurationError(
            f"ChatModelDetoxifier takes a LangChain chat model or a LlamaIndex LLM, not a {type(model).__name__}: "
            "subclass Detoxifier for anything else"
        )
    module, cls = name
    rewriter: Rewriter = getattr(importlib.import_module(module), cls)(model)
    return rewriter
