"""Any sequence classifier of transformers as a detector: whole models and LoRA adapters."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.checkpoints import digest, find_checkpoint
from protector_guardrails.detectors.heads import Polarity, check_head_options, read_head
from protector_guardrails.detectors.templates import Template, TextEncoder, TextWindow
from protector_guardrails.errors import ConfigurationError, MissingExtraError
from protector_guardrails.models.presets import find_preset
from protector_guardrails.types import Exchange, Verdict

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]

_DEFAULT_MAX_TOKENS = 512  # what the paper's detector was trained with


class TransformersDetector(HarmDetector):
    """Judges responses with a sequence classifier, whole or as a LoRA adapter, from disk or the hub.

    Nothing is guessed that would turn a verdict round: what a single logit stands for, and which of
    several labels are harmful, is said by the caller. Weights are read from safetensors only, no code of a
    checkpoint is run, and a checkpoint without a trained classification head is refused.

    A passage that does not fit into ``max_tokens`` is judged in overlapping windows, and so are
    reasoning and tool calls. The highest score of all windows is the exchange's: a response is as harmful
    as its worst part.

    Safe to share between threads: one batch runs at a time.

    Args:
        model: A folder, or the name of a repository on the hub, which is fetched into its cache
            unless it is there. ``HF_HUB_OFFLINE`` is honoured.
        polarity: What a single logit stands for, ``"harm"`` or ``"safe"``. Required there.
        harmful_labels: Which of several labels are harmful, by name or index. Required there. Those that
            name a :class:`~protector_guardrails.HarmCategory` become the verdict's categories.
        multi_label: Whether several labels may hold at once, so that each has its own
            sigmoid and the largest harmful one counts; None: as the checkpoint says. Otherwise
            the probabilities (softmax) of the harmful ones are added up.
        template: The text that is read: ``"response"``, ``"question+response"`` as in the paper's training, or
            a format string with ``{response}`` and ``{question}``. Descriptions of images join the question.
        base: For an adapter, the model it was trained on; None: the one it declares.
        revision: Branch, tag or commit of ``model`` on the hub.
        base_revision: The same for the base.
        merge: Merge an adapter into its base, which is faster. Never done in a quantised base.
        dtype: ``"auto"``: float32 on a CPU, elsewhere bfloat16 if the device has it.
        quantization: ``"8bit"`` or ``"4bit"`` by bitsandbytes, on a GPU; None for neither.
        device_map: As in transformers, such as ``"cpu"``, ``"cuda:1"`` or ``"auto"``; None: the accelerator if
            there is one, else the CPU.
        max_tokens: Longest window; None: 512, or less where the model takes less.
        overlap: Tokens that windows of a passage share.
        max_batch_tokens: Tokens in one batch with padding; less needs less memory.
        threshold: Scores at or above it are harmful; a :class:`~protector_guardrails.Policy` has its own.

    Raises:
        ConfigurationError: If an option cannot be, or does not suit the checkpoint or the machine.
        MissingExtraError: If PyTorch, transformers or peft is not installed.
        WeightsError: If the checkpoint cannot be had, is damaged, or is no classifier.

    Example:
        >>> from protector_guardrails.detectors.transformers import TransformersDetector
        >>> TransformersDetector("my/folder", polarity="up")
        Traceback (most recent call last):
        ...
        protector_guardrails.errors.ConfigurationError: polarity must be 'harm' or 'safe', not 'up'
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        polarity: Polarity | None = None,
        harmful_labels: Sequence[str | int] | None = None,
        multi_label: bool | None = None,
        template: str = "response",
        base: str | Path | None = None,
        revision: str | None = None,
        base_revision: str | None = None,
        merge: bool = True,
        dtype: DType = "auto",
        quantization: Quantization | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        overlap: int = 64,
        max_batch_tokens: int = 8192,
        threshold: float = 0.5,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        check_head_options(polarity, harmful_labels)
        parsed = Template.parse(template)
        _check_numbers(max_tokens, overlap, max_batch_tokens, threshold)
        if dtype not in get_args(DType):
            raise ConfigurationError(f"dtype must be one of {', '.join(get_args(DType))}, not {dtype!r}")
        if quantization not in (None, *get_args(Quantization)):
            raise ConfigurationError(f"quantization must be '8bit', '4bit' or None, not {quantization!r}")
        for library in ("torch", "transformers", "safetensors", "accelerate"):
            if importlib.util.find_spec(library) is None:
                raise MissingExtraError("TransformersDetector", extra="torch")
        placement = _placement(device_map)
        precision = _precision(dtype, quantization, placement)

        from protector_guardrails.detectors.classifiers import load_classifier, plan_classifier

        plan = plan_classifier(find_checkpoint(model, revision=revision), base=base, base_revision=base_revision)
        self.head = read_head(
            plan.labels,
            polarity=polarity,
            harmful_labels=harmful_labels,
            multi_label=plan.multi_label if multi_label is None else multi_label,
        )
        if max_tokens is not None and max_tokens > plan.max_tokens:
            raise ConfigurationError(f"{plan.checkpoint.name} takes {plan.max_tokens} tokens, not {max_tokens}")
        self.encoder = TextEncoder(
            plan.tokenizer,
            parsed,
            max_tokens=max_tokens or min(_DEFAULT_MAX_TOKENS, plan.max_tokens),
            overlap=overlap,
        )
        self.max_batch_tokens = max_batch_tokens
        self.threshold = threshold
        self.categories = tuple(self.head.categories)
        self._classifier, self._plan = load_classifier(
            plan, dtype=precision, quantization=quantization, device_map=placement, merge=merge
        )
        self.settings: Mapping[str, Any] = {
            "polarity": polarity,
            "harmful": list(self.head.harmful),
            "multi_label": self.head.multi_label,
            "template": template,
            "max_tokens": self.encoder.max_tokens,
            "overlap": overlap,
            "dtype": str(precision).removeprefix("torch."),
            "quantization": quantization,
        }
        checkpoint = self._plan.checkpoint
        self.name = f"transformers:{checkpoint.name}@{(checkpoint.commit or digest(self.weights_sha256))[:12]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self._arguments,))

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> TransformersDetector:
        """A published detector by name; see :mod:`protector_guardrails.models.presets`.

        Args:
            name: Such as ``"paper-3b"``.
            options: Any of the detector's, which take the place of the preset's. With ``model`` and ``base`` it is
                read from folders instead of the hub.

        Raises:
            ConfigurationError: If there is no such detector.
        """
        preset = find_preset(name, kind="detector")
        chosen: dict[str, Any] = {
            "model": preset.model,
            "base": preset.base,
            "polarity": preset.polarity,
            "template": preset.template,
        }
        return cls(**(chosen | options))

    @classmethod
    def shared(cls, name: str) -> TransformersDetector:
        """The one instance of the process of a preset, loaded at its first use."""
        with _SHARED_LOCK:
            if name not in _SHARED:
                _SHARED[name] = cls.from_preset(name)
            return _SHARED[name]

    @cached_property
    def weights_sha256(self) -> Mapping[str, str]:
        """File name to sha256 of everything read: weights, configuration, tokenizer; a base's under ``base/``."""
        hashes = self._plan.checkpoint.sha256()
        if self._plan.base is not None:
            hashes |= {f"base/{name}": value for name, value in self._plan.base.sha256().items()}
        return hashes

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge a batch; one verdict per exchange, with spans where windows of the response are harmful.

        Raises:
            DetectorError: If the memory does not suffice, or the model fails.
        """
        if not exchanges:
            return []
        started = time.perf_counter()
        encoded = [self.encoder.encode(exchange.judged_question, exchange.passages) for exchange in exchanges]
        texts = list(dict.fromkeys(window.ids for windows in encoded for window in windows))
        logits = self._classifier.logits(texts, max_batch_tokens=self.max_batch_tokens)
        row_of = {text: row for row, text in enumerate(texts)}
        scores, categories = self.head.scores(logits), self.head.category_scores(logits)
        elapsed_ms = (time.perf_counter() - started) * 1000 / len(exchanges)
        verdicts = []
        for windows in encoded:
            rows = [row_of[window.ids] for window in windows]
            highest = {name: float(of_all[rows].max()) for name, of_all in categories.items()}
            verdicts.append(self._verdict(windows, scores[rows], highest, elapsed_ms))
        return verdicts

    def _verdict(
        self,
        windows: Sequence[TextWindow],
        scores: NDArray[np.float64],
        categories: dict[str, float],
        elapsed_ms: float,
    ) -> Verdict:
        spans: list[tuple[int, int]] = []
        for window, score in zip(windows, scores, strict=True):
            if window.passage == 0 and score >= self.threshold:
                if spans and window.start <= spans[-1][1]:
                    spans[-1] = (spans[-1][0], window.end)
                else:
                    spans.append((window.start, window.end))
        score = float(scores.max())
        return Verdict(
            harmful=score >= self.threshold,
            score=score,
            threshold=self.threshold,
            categories=categories,
            spans=tuple(spans),
            detector=self.name,
            elapsed_ms=elapsed_ms,
        )


_SHARED_LOCK = threading.Lock()
_SHARED: dict[str, TransformersDetector] = {}


def _rebuild(arguments: Mapping[str, Any]) -> TransformersDetector:
    return TransformersDetector(**arguments)


def _check_numbers(max_tokens: int | None, overlap: int, max_batch_tokens: int, threshold: float) -> None:
    if max_tokens is not None and max_tokens < 8:
        raise ConfigurationError(f"max_tokens must be at least 8, not {max_tokens}")
    if overlap < 0:
        raise ConfigurationError(f"overlap must be at least 0, not {overlap}")
    if max_batch_tokens < 1:
        raise ConfigurationError(f"max_batch_tokens must be at least 1, not {max_batch_tokens}")
    if not 0 <= threshold <= 1:
        raise ConfigurationError(f"threshold must be in [0, 1], not {threshold}")


def _placement(device_map: str | Mapping[str, Any] | None) -> str | dict[str, Any]:
    import torch

    if device_map is None:
        return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    wanted = [device_map] if isinstance(device_map, str) else [str(device) for device in device_map.values()]
    if any(device.startswith("cuda") for device in wanted) and not torch.cuda.is_available():
        raise ConfigurationError(f"device_map={device_map!r}: PyTorch finds no CUDA device on this machine")
    return device_map if isinstance(device_map, str) else dict(device_map)


def _precision(dtype: DType, quantization: Quantization | None, placement: str | dict[str, Any]) -> torch.dtype:
    import torch

    on_cpu = placement == "cpu" or not torch.accelerator.is_available()
    if quantization is not None:
        if on_cpu:
            raise ConfigurationError(f"quantization={quantization!r} needs a GPU: use dtype='bfloat16' on a CPU")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigurationError(f"quantization={quantization!r} needs bitsandbytes: pip install bitsandbytes")
    has_bfloat16 = on_cpu or not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
    if dtype == "bfloat16" and not has_bfloat16:
        raise ConfigurationError("dtype='bfloat16' is not available on this GPU: use 'float16' or 'float32'")
    if dtype == "float16" and on_cpu:
        raise ConfigurationError("dtype='float16' needs a GPU: use 'bfloat16' or 'float32' on a CPU")
    if dtype == "auto":
        dtype = "float32" if on_cpu or not has_bfloat16 else "bfloat16"
    return cast("torch.dtype", getattr(torch, dtype))
