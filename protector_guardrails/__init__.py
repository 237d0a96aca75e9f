"""Guards what multimodal models answer: a harm detector and a detoxifier behind any of them.

An implementation of MLLM-Protector (arXiv 2401.02906). Names are loaded when they are
first used, so importing the package costs nothing and needs no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "types": ("Exchange", "HarmCategory", "Image", "Outcome", "ToolCall", "Verdict"),
    "policy": ("Policy",),
    "protector": ("Protector",),
    "detectors.base": ("HarmDetector",),
    "detectors.caching": ("CachingDetector",),
    "detectors.embedded": ("EmbeddedDetector",),
    "detectors.transformers": ("TransformersDetector",),
    "detoxifiers.base": ("Detoxifier",),
    "detoxifiers.causal_lm": ("CausalLMDetoxifier",),
    "detoxifiers.chat_model": ("ChatModelDetoxifier",),
    "detoxifiers.redact": ("RedactDetoxifier",),
    "detoxifiers.refusal": ("RefusalDetoxifier",),
    "langchain.handler": ("AsyncProtectorCallbackHandler", "ProtectorCallbackHandler"),
    "langchain.middleware": ("ProtectorMiddleware",),
    "langchain.protected_model": ("ProtectedChatModel", "protect"),
    "langchain.runnables": ("DetoxifierRunnable", "HarmDetectorRunnable"),
    "llama_index.engines": ("GuardedChatEngine", "GuardedQueryEngine"),
    "llama_index.llm": ("GuardedLLM",),
    "llama_index.postprocessor": ("HarmResponsePostprocessor",),
    "audit": ("AuditLog",),
    "errors": (
        "AuditError",
        "ConfigurationError",
        "DetectorError",
        "DetoxifierError",
        "GuardTimeoutError",
        "HarmfulResponseError",
        "InputError",
        "MissingExtraError",
        "ModelError",
        "ProtectorError",
        "WeightsError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from protector_guardrails.audit import AuditLog as AuditLog
    from protector_guardrails.detectors.base import HarmDetector as HarmDetector
    from protector_guardrails.detectors.caching import CachingDetector as CachingDetector
    from protector_guardrails.detectors.embedded import EmbeddedDetector as EmbeddedDetector
    from protector_guardrails.detectors.transformers import TransformersDetector as TransformersDetector
    from protector_guardrails.detoxifiers.base import Detoxifier as Detoxifier
    from protector_guardrails.detoxifiers.causal_lm import CausalLMDetoxifier as CausalLMDetoxifier
    from protector_guardrails.detoxifiers.chat_model import ChatModelDetoxifier as ChatModelDetoxifier
    from protector_guardrails.detoxifiers.redact import RedactDetoxifier as RedactDetoxifier
    from protector_guardrails.detoxifiers.refusal import RefusalDetoxifier as RefusalDetoxifier
    from protector_guardrails.errors import AuditError as AuditError
    from protector_guardrails.errors import ConfigurationError as ConfigurationError
    from protector_guardrails.errors import DetectorError as DetectorError
    from protector_guardrails.errors import DetoxifierError as DetoxifierError
    from protector_guardrails.errors import GuardTimeoutError as GuardTimeoutError
    from protector_guardrails.errors import HarmfulResponseError as HarmfulResponseError
    from protector_guardrails.errors import InputError as InputError
    from protector_guardrails.errors import MissingExtraError as MissingExtraError
    from protector_guardrails.errors import ModelError as ModelError
    from protector_guardrails.errors import ProtectorError as ProtectorError
    from protector_guardrails.errors import WeightsError as WeightsError
    from protector_guardrails.langchain.handler import AsyncProtectorCallbackHandler as AsyncProtectorCallbackHandler
    from protector_guardrails.langchain.handler import ProtectorCallbackHandler as ProtectorCallbackHandler
    from protector_guardrails.langchain.middleware import ProtectorMiddleware as ProtectorMiddleware
    from protector_guardrails.langchain.protected_model import ProtectedChatModel as ProtectedChatModel
    from protector_guardrails.langchain.protected_model import protect as protect
    from protector_guardrails.langchain.runnables import DetoxifierRunnable as DetoxifierRunnable
    from protector_guardrails.langchain.runnables import HarmDetectorRunnable as HarmDetectorRunnable
    from protector_guardrails.llama_index.engines import GuardedChatEngine as GuardedChatEngine
    from protector_guardrails.llama_index.engines import GuardedQueryEngine as GuardedQueryEngine
    from protector_guardrails.llama_index.llm import GuardedLLM as GuardedLLM
    from protector_guardrails.llama_index.postprocessor import HarmResponsePostprocessor as HarmResponsePostprocessor
    from protector_guardrails.policy import Policy as Policy
    from protector_guardrails.protector import Protector as Protector
    from protector_guardrails.types import Exchange as Exchange
    from protector_guardrails.types import HarmCategory as HarmCategory
    from protector_guardrails.types import Image as Image
    from protector_guardrails.types import Outcome as Outcome
    from protector_guardrails.types import ToolCall as ToolCall
    from protector_guardrails.types import Verdict as Verdict

__all__ = sorted([*_HOME_OF, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
