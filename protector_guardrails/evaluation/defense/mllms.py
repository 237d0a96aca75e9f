"""The multimodal model that is asked, as it is named on the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from protector_guardrails.errors import ConfigurationError, MissingExtraError, ProtectorError

if TYPE_CHECKING:
    from protector_guardrails.evaluation.defense.cases import Case

RECORDED = "recorded"
"""Stands for the answers beside the questions; before a colon, for those in a file."""

_FORMS = "use package.module:object, PROVIDER:MODEL, transformers:FOLDER, recorded:FILE, or recorded"
_ROWS = (".jsonl", ".jsonl.gz", ".jsonl.xz")


class UnanswerableError(ProtectorError):
    """A case cannot be put to a model; asking again would not help."""


class Mllm(Protocol):
    """A multimodal model.

    Attributes:
        name: What it is called in results.
        fingerprint: Recorded answers are taken over as long as this stays the same.
        concurrency: How many questions it can be asked at a time; None if it sets no limit.
    """

    name: str
    fingerprint: str
    concurrency: int | None

    async def answer(self, case: Case) -> str:
        """The text of its answer to a case.

        Raises:
            UnanswerableError: If the case cannot be put to it.
        """
        ...


def load_mllm(spec: str) -> Mllm:
    """The model behind a spec.

    ========================= ====================================================================
    Spec                      What is asked
    ========================= ====================================================================
    ``recorded:FILE``         nobody: answers are read from a file; ``.jsonl`` files need no prefix
    ``transformers:FOLDER``   a vision-language model on disk
    ``PROVIDER:MODEL``        a provider that LangChain knows, such as ``openai:gpt-4o-mini``
    ``package.module:object`` a LangChain chat model, or a class or function that gives one
    ========================= ====================================================================

    Only questions and images of cases are handed to the model, as messages of LangChain's
    standard form. Its callbacks, cache and tracing are as its user set them.

    Raises:
        ConfigurationError: If there is none; says what is wrong.
        MissingExtraError: If a package for it is missing.

    Example:
        >>> load_mllm("openai:gpt-4o-mini").name  # doctest: +SKIP
        'gpt-4o-mini'
    """
    before, colon, after = spec.partition(":")
    if before == RECORDED and colon:
        return _recorded(after)
    if spec.endswith(_ROWS) and Path(spec).is_file():
        return _recorded(spec)
    if not colon or not after:
        told = ": there is no such file" if spec.endswith(_ROWS) else ""
        raise ConfigurationError(f"unknown model {spec!r}{told}; {_FORMS}")
    if before == "transformers":
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            raise MissingExtraError("a model of transformers", extra="torch")
        from protector_guardrails.evaluation.defense.local_mllm import LocalMllm

        return LocalMllm(Path(after))
    from protector_guardrails.evaluation.defense.chat_mllm import ChatMllm

    return ChatMllm(_of_provider(spec) if before in _providers() else _imported(spec), spec=spec)


def _recorded(path: str) -> Mllm:
    from protector_guardrails.evaluation.defense.recorded import RecordedMllm

    return RecordedMllm(Path(path))


def _providers() -> Collection[str]:
    """Names of providers that LangChain knows; empty without the package ``langchain``."""
    if importlib.util.find_spec("langchain") is None:
        return ()
    from langchain.chat_models import base

    return getattr(base, "_BUILTIN_PROVIDERS", ())  # it is told nowhere else


def _of_provider(spec: str) -> Any:
    from langchain.chat_models import init_chat_model

    try:
        return init_chat_model(spec)
    except ImportError as error:  # names the package to install
        raise ConfigurationError(f"model {spec!r}: {error}") from error
    except Exception as error:  # such as a missing key, which each provider tells in its own way
        raise ConfigurationError(f"model {spec!r} could not be made: {one_line(error)}") from error


def _imported(spec: str) -> Any:
    """What a spec's import path names, called if it gives the model only then; as detectors are loaded."""
    from langchain_core.runnables import Runnable

    from protector_guardrails.evaluation.importing import import_object

    try:
        found = import_object(spec, what="model")
    except ConfigurationError as error:
        if "." not in spec.partition(":")[0] and not _providers():
            raise MissingExtraError(f"model {spec!r}, if it is a provider's,", extra="agents") from error
        raise ConfigurationError(f"{error}; {_FORMS}") from error
    if not isinstance(found, Runnable):
        if not callable(found):
            raise ConfigurationError(f"model {spec!r} is {type(found).__name__}, not a chat model of LangChain")
        try:
            found = found()
        except Exception as error:
            raise ConfigurationError(f"model {spec!r} could not be made: {one_line(error)}") from error
    if not isinstance(found, Runnable):
        raise ConfigurationError(f"model {spec!r} gives {type(found).__name__}, not a chat model of LangChain")
    return found


def one_line(error: BaseException) -> str:
    """Class and message of an error in one line of at most 200 characters and the class: it might quote a text."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
