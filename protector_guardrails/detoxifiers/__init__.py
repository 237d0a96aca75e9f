"""Detoxifiers: what a harmful response becomes."""

from __future__ import annotations

import importlib.util

from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.detoxifiers.chat_model import ChatModelDetoxifier, RewritingModel, is_rewriting_model
from protector_guardrails.detoxifiers.redact import RedactDetoxifier
from protector_guardrails.detoxifiers.refusal import RefusalDetoxifier
from protector_guardrails.errors import ConfigurationError, MissingExtraError
from protector_guardrails.models.presets import PRESETS

_PRESETS = tuple(name for name, preset in PRESETS.items() if preset.kind == "detoxifier")

DETOXIFIERS = ("embedded", "redact", "refuse", *_PRESETS)
"""Detoxifiers that can be asked for by name. All but ``"redact"`` and ``"refuse"`` are language models and need the
extra ``torch``."""

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
        MissingExtraError: If it is a language model, and PyTorch is not installed.
    """
    if isinstance(detoxifier, Detoxifier):
        return detoxifier
    if detoxifier == "redact":
        return RedactDetoxifier()
    if detoxifier == "refuse":
        return RefusalDetoxifier()
    if isinstance(detoxifier, str) and detoxifier in DETOXIFIERS:
        _require_torch(detoxifier)
        from protector_guardrails.detoxifiers.causal_lm import CausalLMDetoxifier

        return CausalLMDetoxifier.shared(detoxifier)
    if not isinstance(detoxifier, str) and is_rewriting_model(detoxifier):
        return ChatModelDetoxifier(detoxifier)
    raise ConfigurationError(
        f"unknown detoxifier {detoxifier!r}: use one of {', '.join(DETOXIFIERS)}, an instance of Detoxifier, "
        "or a chat model of LangChain or LlamaIndex"
    )


def check_detoxifier(detoxifier: AnyDetoxifier) -> str | Detoxifier:
    """Refuse what no detoxifier can be made of, without loading one.

    Returns:
        What a guard keeps as its setting: the name or detoxifier given, or the one made of a chat model.

    Raises:
        ConfigurationError: If it is no known name, no :class:`Detoxifier` and no chat model.
        MissingExtraError: If it is a language model, and PyTorch is not installed.
    """
    if isinstance(detoxifier, str) and detoxifier in DETOXIFIERS:
        _require_torch(detoxifier)
        return detoxifier
    return resolve_detoxifier(detoxifier)


def _require_torch(name: str) -> None:
    if name in ("redact", "refuse"):
        return
    if any(importlib.util.find_spec(module) is None for module in ("torch", "transformers", "peft")):
        raise MissingExtraError(f"the detoxifier {name!r}", extra="torch", instead='use "redact", which needs none')
