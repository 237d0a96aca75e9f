"""Asking a chat model of LangChain for a rewrite, where nobody listens."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, ensure_config
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.fallbacks import RunnableWithFallbacks

from protector_guardrails.content import read_content
from protector_guardrails.detoxifiers.rewrite_prompt import RewritePrompt
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.langchain.private import (
    PrivateCall,
    bindings_in,
    is_configurable,
    models_in,
    privately,
    resolved,
)


class LangChainRewriter:
    """Asks a chat model in private, without its caches and callbacks.

    Args:
        model: A chat model, or bindings, retries or fallbacks of chat models. One with
            configurable fields is taken as it is configured now.

    Raises:
        ConfigurationError: If it is anything else, or if listeners are attached to it.
    """

    def __init__(self, model: Runnable[Any, Any]) -> None:
        if is_configurable(model):
            model = resolved(model, ensure_config())
        if not _is_chat_model(model):
            raise ConfigurationError(
                f"a {type(model).__name__} cannot rewrite: pass a LangChain chat model, or bindings, retries or "
                "fallbacks of chat models; for a chain of your own subclass Detoxifier"
            )
        if any(binding.config_factories for binding in bindings_in(model)):
            raise ConfigurationError(
                "the rewriting model has listeners (with_listeners or with_alisteners), which would see the harmful "
                "response: pass the model without them"
            )
        self._model = privately(model)

    @property
    def name(self) -> str:
        """Name of the model."""
        model = models_in(self._model)[0]
        names = (getattr(model, key, None) for key in ("model_name", "model", "model_id"))
        return next((name for name in names if isinstance(name, str) and name), type(model).__name__)

    def ask(self, prompt: RewritePrompt) -> str:
        """The text of the model's answer; reasoning and tool calls are left out."""
        return _text_of(PrivateCall().invoke(self._model.invoke, _messages(prompt)))

    async def aask(self, prompt: RewritePrompt) -> str:
        """Like :meth:`ask`, without blocking the event loop."""
        return _text_of(await PrivateCall().ainvoke(self._model.ainvoke, _messages(prompt)))


def _is_chat_model(runnable: Any) -> bool:
    if isinstance(runnable, RunnableBindingBase):
        return _is_chat_model(runnable.bound)
    if isinstance(runnable, RunnableWithFallbacks):
        return all(_is_chat_model(part) for part in (runnable.runnable, *runnable.fallbacks))
    return isinstance(runnable, BaseChatModel)


def _messages(prompt: RewritePrompt) -> list[BaseMessage]:
    return [SystemMessage(prompt.system), HumanMessage(prompt.user)]


def _text_of(message: BaseMessage) -> str:
    return read_content(message.content).text
