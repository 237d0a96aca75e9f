"""LoRA adapters: whether one fits its base, and putting it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protector_guardrails.detectors.checkpoints import Checkpoint, Shapes
from protector_guardrails.errors import WeightsError

if TYPE_CHECKING:
    import torch

ADAPTER_PREFIX = "base_model.model."
"""What peft puts before the names of a model's weights."""


def check_kind(checkpoint: Checkpoint, adapter: Mapping[str, Any]) -> None:
    """Refuse adapters that are not for classifiers.

    Raises:
        WeightsError: If it is no LoRA adapter, or declares another task.
    """
    if (kind := adapter.get("peft_type")) != "LORA":
        raise WeightsError(f"the adapter {checkpoint.name} is of type {kind}: only LoRA adapters are supported")
    if adapter.get("megatron_config"):
        raise WeightsError(f"the adapter {checkpoint.name} asks for Megatron, which is not supported")
    if (task := adapter.get("task_type")) not in ("SEQ_CLS", None):
        has_head = any("lora_" not in name for name in checkpoint.with_weights().shapes)
        carries = "" if has_head else " and carries no score head"
        raise WeightsError(
            f"the adapter {checkpoint.name} declares the task {task}{carries}: it writes text and cannot judge it. A "
            "detector's adapter declares SEQ_CLS and carries the head that it was trained with"
        )


def check_names(checkpoint: Checkpoint) -> None:
    """Refuse weights that are not named as peft names them.

    Raises:
        WeightsError: If one is not.
    """
    strange = [name for name in checkpoint.shapes if not name.startswith(ADAPTER_PREFIX)]
    if strange:
        raise WeightsError(f"the adapter {checkpoint.name} holds a weight in no form known to peft: {strange[0]}")


def check_sizes(checkpoint: Checkpoint, base: Checkpoint, skeleton: Shapes, declared: str) -> None:
    """Every weight of the adapter must have a place of its size in the base.

    Args:
        checkpoint: The adapter.
        base: What it is put on.
        skeleton: Shapes of the base's parameters with a head.
        declared: The base that the adapter declares.

    Raises:
        WeightsError: If one has none; names both sizes and the declared base.
    """
    advice = f"it declares the base {declared}: pass that one as base=..."
    for key, shape in checkpoint.shapes.items():
        name = key.removeprefix(ADAPTER_PREFIX)
        module, lora, part = name.rpartition(".lora_")
        if lora and part not in ("A.weight", "B.weight"):
            continue  # magnitudes and embeddings; they are compared when they are put on
        place = skeleton.get(f"{module}.weight" if lora else name)
        if place is None:
            raise WeightsError(
                f"the adapter {checkpoint.name} has weights for {module or name}, which {base.name} has not; {advice}"
            )
        # A maps from the inputs of a layer, B to its outputs; which of them come first differs between layers.
        side = 0 if part == "B.weight" else -1
        if (shape[side] not in place) if lora else (shape != place):
            raise WeightsError(
                f"the adapter {checkpoint.name} was made for {shape[side]} dimensions, the base {base.name} has "
                f"{place[side]} (at {module or name}); {advice}"
            )


def with_adapter(model: Any, checkpoint: Checkpoint, *, merge: bool) -> Any:
    """Put an adapter on its base, and see that every weight of its file arrived, the head's above all.

    Raises:
        WeightsError: If one did not, or the model has more places than the file has weights.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    adapted = PeftModel.from_pretrained(model, str(checkpoint.folder), is_trainable=False)
    placed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    filed = load_file(checkpoint.weights[0])
    wrong = set(placed) ^ set(filed)
    wrong |= {name for name in set(placed) & set(filed) if not _same(placed[name], filed[name])}
    if wrong:
        raise WeightsError(
            f"the adapter {checkpoint.name} does not fit its base: {sorted(wrong)[0]} did not find its place "
            f"({len(wrong)} such weights)"
        )
    return adapted.merge_and_unload(safe_merge=True) if merge else adapted


def _same(placed: torch.Tensor, filed: torch.Tensor) -> bool:
    import torch

    return torch.equal(placed.cpu(), filed.to(placed.dtype))
