"""Detoxifiers: what a harmful response becomes."""

from __future__ import annotations

from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.detoxifiers.chat_model import ChatModelDetoxifier, RewritingModel, is_rewriting_model
from protector_guardrails.detoxifiers.redact import RedactDetoxifier
from protector_guardrails.detoxifiers.refusal import RefusalDetoxifier
from protector_guardrails.errors import ConfigurationError

DETOXIFIERS: dict[str, type[Detoxifier]] = {"redact": RedactDetoxifier, "refuse": RefusalDetoxifier}
"""Detoxifiers that can be asked for by name."""

AnyDetoxifier = str | Detoxifier | RewritingModel
"""What stands for a detoxifier: a name, a detoxifier, or a chat model, which :class:`ChatModelDetoxifier` then asks."""

__all__ = [
    "DETOXIFIERS",
    "AnyDetoxifier",
    "ChatModelDetoxifier",
    "Detoxifier",
    "RedactDetoxifier",
    "RefusalDetoxifier",
    "check_detoxifier",
    "resolve_detoxifier",
]


def resolve_detoxifier(detoxifier: AnyDetoxifier) -> Detoxifier:
    """The detoxifier of that name, or the one given, or one that asks the chat model given.

    Raises:
        ConfigurationError: If it is no known name, no :class:`Detoxifier` and no chat model.
    """
    if isinstance(detoxifier, Detoxifier):
        return detoxifier
    if isinstance(detoxifier, str) and detoxifier in DETOXIFIERS:
        return DETOXIFIERS[detoxifier]()
    if not isinstance(detoxifier, str) and is_rewriting_model(detoxifier):
        return ChatModelDetoxifier(detoxifier)
    raise ConfigurationError(
        f"unknown detoxifier {detoxifier!r}: use one of {', '.join(sorted(DETOXIFIERS))}, an instance of Detoxifier, "
        "or a chat model of LangChain or LlamaIndex"
    )


def check_detoxifier(detoxifier: AnyDetoxifier) -> str | Detoxifier:
    """Refuse what no detoxifier can be made of, without loading one.

    Returns:
        What a guard keeps as its setting: the name or detoxifier given, or the one made of a chat model.

    Raises:
        ConfigurationError: If it is no known name, no :class:`Detoxifier` and no chat model.
    """
    if isinstance(detoxifier, str) and detoxifier in DETOXIFIERS:
        return detoxifier
    return resolve_detoxifier(detoxifier)
