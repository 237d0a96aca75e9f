"""Loading a language model that detoxifies: a base, and the LoRA adapter merged into it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Literal

from protector_guardrails.detectors.checkpoints import Checkpoint, first_line
from protector_guardrails.detectors.pooling import out_of_memory
from protector_guardrails.errors import ProtectorError, WeightsError

Dtype = Literal["int8", "bfloat16", "float16", "float32"]

_PREFIX = "base_model.model."
_LOADING = threading.Lock()  # the library's settings of what it shows are one for the process


def load_language_model(base: Checkpoint, adapter: Checkpoint | None, *, dtype: Dtype, device: str) -> tuple[Any, Any]:
    """Model and tokenizer, ready to write.

    Raises:
        WeightsError: If files are missing, damaged or pickles, if the adapter was made for
            another base, or if memory does not suffice.
    """
    import torch
    import transformers

    library: Any = transformers  # its functions have no types

    base = base.with_weights()
    if adapter is not None:
        adapter = adapter.with_weights()
        _check_kind(adapter)
    with _explained(base.name), quietly():
        tokenizer = library.AutoTokenizer.from_pretrained(
            str(base.folder), trust_remote_code=False, local_files_only=True
        )
        model, info = library.AutoModelForCausalLM.from_pretrained(
            str(base.folder),
            # An adapter is merged and weights are rounded once, from full precision.
            dtype=torch.float32 if dtype == "int8" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise WeightsError(
                f"{base.name} comes without {len(info['missing_keys'])} of the weights of a {type(model).__name__}, "
                f"such as {sorted(info['missing_keys'])[0]}: use a causal language model"
            )
        if tokenizer.eos_token_id is None:
            raise WeightsError(f"the tokenizer of {base.name} has no end-of-text token: its model would never stop")
        if adapter is not None:
            _check_sizes(adapter, base, model)
            model = _merged(model, adapter)
        model.eval().requires_grad_(False)
        if dtype == "int8":
            from protector_guardrails.detoxifiers.int8 import quantize_linears

            quantize_linears(model)
        model.to(device)
        model.generation_config = library.GenerationConfig()  # a base's own may sample, or stop elsewhere
    return model, tokenizer


def _check_kind(adapter: Checkpoint) -> None:
    config = adapter.adapter_config
    if config is None:
        raise WeightsError(f"{adapter.name} is no adapter: there is no adapter_config.json")
    if (kind := config.get("peft_type")) != "LORA":
        raise WeightsError(f"the adapter {adapter.name} is of type {kind}: only LoRA adapters are supported")
    if (task := config.get("task_type")) not in ("CAUSAL_LM", None):
        raise WeightsError(f"the adapter {adapter.name} declares the task {task}: a detoxifier's declares CAUSAL_LM")


def _check_sizes(adapter: Checkpoint, base: Checkpoint, model: Any) -> None:
    """Every weight of the adapter must have a place of its size in the base."""
    declared = (adapter.adapter_config or {}).get("base_model_name_or_path") or "unknown"
    modules = dict(model.named_modules())
    # What a query is computed from has the hidden size, which tells bases apart best: it is looked at first.
    for key, shape in sorted(adapter.shapes.items(), key=lambda item: (".q_proj.lora_A." not in item[0], item[0])):
        name, matrix, _ = key.removeprefix(_PREFIX).partition(".lora_")
        place = modules.get(name)
        if not matrix or (place is not None and not hasattr(place, "in_features")):
            continue  # embeddings and saved modules; peft compares them
        if place is None:
            raise WeightsError(
                f"the adapter {adapter.name} has weights for {name}, which the base {base.name} has not. "
                f"It was trained on the base {declared}: pass that one"
            )
        inwards = ".lora_A." in key
        mine, theirs = (shape[-1], place.in_features) if inwards else (shape[0], place.out_features)
        if (inwards or ".lora_B." in key) and mine != theirs:
            raise WeightsError(
                f"the adapter {adapter.name} was made for {mine} dimensions at {name}, the base {base.name} has "
                f"{theirs} (hidden size {model.config.hidden_size}). It was trained on the base {declared}: pass that "
                "one"
            )


def _merged(model: Any, adapter: Checkpoint) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    adapted = PeftModel.from_pretrained(model, str(adapter.folder), is_trainable=False)
    unplaced = set(adapter.shapes) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if unplaced:
        raise WeightsError(
            f"the adapter {adapter.name} does not fit its base: {sorted(unplaced)[0]} did not find its place"
        )
    return adapted.merge_and_unload(safe_merge=True)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say in one line which model could not be loaded, and why."""
    try:
        yield
    except ProtectorError:
        raise
    except Exception as error:  # the libraries raise many kinds for damaged or strange files
        if out_of_memory(error):
            raise WeightsError(f"{name} does not fit into memory: free some, or choose a smaller dtype") from error
        raise WeightsError(f"{name} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars and notes on standard error."""
    from transformers import utils

    logging: Any = utils.logging
    with _LOADING:
        level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if shown:
                logging.enable_progress_bar()
