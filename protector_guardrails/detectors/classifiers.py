"""Loading a sequence classifier, or a LoRA adapter with the base that it was trained on.

Everything that can be known without the weights is checked before they are read, and a
classifier is handed out only if every one of its weights came from a file.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from protector_guardrails.detectors.adapters import (
    ADAPTER_PREFIX,
    check_kind,
    check_names,
    check_sizes,
    with_adapter,
)
from protector_guardrails.detectors.checkpoints import Checkpoint, find_checkpoint, first_line
from protector_guardrails.detectors.pooling import PooledClassifier, out_of_memory
from protector_guardrails.errors import ConfigurationError, MissingExtraError, ProtectorError, WeightsError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Quantization = Literal["8bit", "4bit"]

_LOADING = threading.Lock()  # the libraries' log level is one for the process


@dataclass(frozen=True, slots=True)
class Plan:
    """A classifier about to be loaded: what it is made of, as far as small files tell.

    Attributes:
        checkpoint: The model or adapter that was asked for.
        base: Where an adapter is put on; None for a whole model.
        config: transformers' configuration, with the labels of the head.
        head: Names of the head's parameters, those with one row per label.
        tokenizer: Ready to encode.
        pad_id: What fills up batches.
        max_tokens: Longest input that model and tokenizer take.
    """

    checkpoint: Checkpoint
    base: Checkpoint | None
    config: Any
    head: tuple[str, ...]
    tokenizer: Tokenizer
    pad_id: int
    max_tokens: int

    @property
    def labels(self) -> list[str]:
        """Names of the head's outputs in order."""
        return [str(self.config.id2label.get(index, index)) for index in range(self.config.num_labels)]

    @property
    def multi_label(self) -> bool:
        """Whether the configuration says that several labels may hold at once."""
        return bool(self.config.problem_type == "multi_label_classification")


def plan_classifier(checkpoint: Checkpoint, *, base: str | Path | None, base_revision: str | None) -> Plan:
    """Read the small files, and the names and shapes of an adapter's weights.

    Raises:
        WeightsError: If this cannot become a classifier, with the reason.
        ConfigurationError: If a base is given for what is no adapter.
    """
    adapter = checkpoint.adapter_config
    if adapter is None:
        if base is not None or base_revision is not None:
            raise ConfigurationError(f"{checkpoint.name} is a whole model, not an adapter: it takes no base")
        config = _config(checkpoint)
        _check_declared(checkpoint)
        _, head = _skeleton(config, checkpoint.name)
        return _plan(checkpoint, None, config, head)
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("a LoRA adapter", extra="torch")
    check_kind(checkpoint, adapter)
    declared = adapter.get("base_model_name_or_path")
    if base is None and not declared:
        raise WeightsError(f"the adapter {checkpoint.name} does not say what its base is: pass it as base=...")
    checkpoint = checkpoint.with_weights()
    check_names(checkpoint)
    if base is None:
        base, base_revision = str(declared), base_revision or adapter.get("revision")
    found = _find_base(checkpoint, base, base_revision)
    config = _config(found)
    skeleton, head = _skeleton(config, found.name)
    rows = {checkpoint.shapes[key][0] for name in head if (key := ADAPTER_PREFIX + name) in checkpoint.shapes}
    if not rows or any(ADAPTER_PREFIX + name not in checkpoint.shapes for name in head):
        raise WeightsError(
            f"the adapter {checkpoint.name} carries no classification head ({', '.join(head)}): it was not trained as "
            "a classifier, or was saved without its head, and a head with random weights would judge at random"
        )
    config.num_labels = rows.pop()
    skeleton, head = _skeleton(config, found.name)
    check_sizes(checkpoint, found, skeleton, str(declared))
    return _plan(checkpoint, found, config, head)


def load_classifier(
    plan: Plan, *, dtype: torch.dtype, quantization: Quantization | None, device_map: Any, merge: bool
) -> tuple[PooledClassifier, Plan]:
    """Read the weights. Returns the classifier, and the plan with the files that were read.

    Raises:
        WeightsError: If a file is missing or damaged, if a weight is not in any, or if memory does not suffice.
    """
    whole = (plan.base or plan.checkpoint).with_weights()
    with _explained(whole.name), _quietly():
        model, info = _auto("AutoModelForSequenceClassification").from_pretrained(
            str(whole.folder),
            config=plan.config,
            dtype=dtype,
            device_map=device_map,
            quantization_config=_quantization(quantization, plan.head),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    _check_complete(plan, info["missing_keys"])
    module = plan.head[0].rpartition(".")[0]
    if plan.base is not None:
        with _explained(plan.checkpoint.name), _quietly():
            model = with_adapter(model, plan.checkpoint, merge=merge and quantization is None)
        if not merge or quantization is not None:
            module = ADAPTER_PREFIX + module
        loaded = replace(plan, base=whole)
    else:
        loaded = replace(plan, checkpoint=whole)
    with _explained(plan.checkpoint.name):
        probe = plan.tokenizer.encode("yes", add_special_tokens=True).ids
        classifier = PooledClassifier(model, head=module, pad_id=plan.pad_id, probe=probe)
    return classifier, loaded


def _plan(checkpoint: Checkpoint, base: Checkpoint | None, config: Any, head: tuple[str, ...]) -> Plan:
    source = checkpoint if base is None or checkpoint.has_tokenizer else base
    if not source.has_tokenizer:
        raise WeightsError(f"{source.name} has no tokenizer (tokenizer.json, tokenizer.model or vocab.txt)")
    if not (source.folder / "tokenizer.json").exists() and (source.folder / "tokenizer.model").exists():
        try:
            importlib.import_module("sentencepiece")
            importlib.import_module("google.protobuf")
        except ImportError as error:
            raise MissingExtraError(f"the tokenizer of {source.name} (tokenizer.model)", extra="torch") from error
    with _explained(f"the tokenizer of {source.name}"), _quietly():
        tokenizer = _auto("AutoTokenizer").from_pretrained(
            str(source.folder), trust_remote_code=False, local_files_only=True
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise WeightsError(
            f"the tokenizer of {source.name} has no fast form (tokenizer.json), which tells where in a text a token is"
        )
    text_config = config.get_text_config()
    candidates = (tokenizer.pad_token_id, text_config.pad_token_id, 0)
    limits = (tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", None))
    return Plan(
        checkpoint,
        base,
        config,
        head,
        backend,
        pad_id=next(int(candidate) for candidate in candidates if candidate is not None),
        max_tokens=int(min(limit for limit in (*limits, 10**9) if isinstance(limit, int) and limit > 0)),
    )


def _find_base(checkpoint: Checkpoint, base: str | Path, revision: str | None) -> Checkpoint:
    try:
        found = find_checkpoint(base, revision=revision)
    except WeightsError as error:
        raise WeightsError(
            f"the base of the adapter {checkpoint.name}: {error}; another one is given as base="
        ) from error
    if found.adapter_config is not None:
        raise WeightsError(f"the base {found.name} is itself an adapter: pass a whole model as base=...")
    return found


def _config(checkpoint: Checkpoint) -> Any:
    _ = checkpoint.config  # says what lies there instead, if there is none
    with _explained(checkpoint.name):
        return _auto("AutoConfig").from_pretrained(
            str(checkpoint.folder), trust_remote_code=False, local_files_only=True
        )


def _skeleton(config: Any, name: str) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Shapes of the classifier's parameters, and which of them make up its head: those that grow with the labels."""
    import torch

    shapes = []
    for labels in (config.num_labels, config.num_labels + 1):
        changed = copy.deepcopy(config)
        changed.num_labels = labels
        with _explained(name), torch.device("meta"):
            model = _auto("AutoModelForSequenceClassification").from_config(changed, trust_remote_code=False)
        shapes.append({key: tuple(value.shape) for key, value in model.named_parameters()})
    head = sorted((key for key in shapes[0] if shapes[0][key] != shapes[1][key]), reverse=True)
    if not head or len({key.rpartition(".")[0] for key in head}) != 1:
        raise WeightsError(f"{name} ({config.model_type}) has no single classification head")
    return shapes[0], tuple(head)


def _check_declared(checkpoint: Checkpoint) -> None:
    declared = checkpoint.config.get("architectures") or []
    if declared and not any("SequenceClassification" in str(name) for name in declared):
        raise WeightsError(
            f"{checkpoint.name} is a {declared[0]}: it has no classification head, and one with random weights would "
            "judge at random. Use a checkpoint made as a sequence classifier, or an adapter with a head"
        )


def _check_complete(plan: Plan, missing: Iterator[str]) -> None:
    supplied = plan.checkpoint.shapes if plan.base is not None else {}
    absent = sorted(name for name in missing if ADAPTER_PREFIX + name not in supplied)
    if not absent:
        return
    name = (plan.base or plan.checkpoint).name
    what = "a classification head" if set(absent) & set(plan.head) else "all of its weights"
    shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    raise WeightsError(f"{name} comes without {what} (missing: {shown}); random weights would judge at random")


def _quantization(quantization: Quantization | None, head: tuple[str, ...]) -> Any:
    if quantization is None:
        return None
    import torch

    module = head[0].rpartition(".")[0]
    if quantization == "8bit":
        return _auto("BitsAndBytesConfig")(load_in_8bit=True, llm_int8_skip_modules=[module])
    return _auto("BitsAndBytesConfig")(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[module],
    )


def _auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's report that a base has no head: what is missing is checked here."""
    from transformers.utils import logging as reports

    with _LOADING:
        before = reports.get_verbosity()
        reports.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            reports.set_verbosity(before)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ProtectorError:
        raise
    except Exception as error:  # the libraries below raise nearly everything
        if out_of_memory(error):
            raise WeightsError(
                f"{what} does not fit into memory: load it with dtype='bfloat16', quantization='8bit' or '4bit', or "
                "spread it with device_map='auto'"
            ) from error
        raise WeightsError(f"{what} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
