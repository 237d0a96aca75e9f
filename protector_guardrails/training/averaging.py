"""Means of weights: of a run over its last steps, which is steadier than the last weights, and of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

_FILE = "mean.safetensors"


class AveragedWeights(TrainerCallback):
    """Keeps an exponential running mean of the weights that are trained.

    The mean lies in each checkpoint, so a run that goes on from one goes on with it.

    Args:
        decay: How much of the mean stays at each step, in [0, 1); 0 keeps nothing.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.mean: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer hook."""
        kept = _checkpoint(args, state) / _FILE
        if self.decay and state.global_step and kept.is_file():
            self.mean = load_file(str(kept))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer hook."""
        if self.decay:
            partial = _checkpoint(args, state) / f"{_FILE}.partial"
            save_file(self.mean, str(partial))
            partial.replace(partial.with_name(_FILE))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer hook."""
        if self.decay:
            self.update(kwargs["model"])

    def update(self, model: nn.Module) -> None:
        """Take the weights as they are now into the mean."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if name in self.mean:
                    # One that was read from a checkpoint lies on the CPU at first.
                    self.mean[name] = self.mean[name].to(parameter.device).lerp_(parameter, 1 - self.decay)
                else:
                    self.mean[name] = parameter.detach().clone()

    def apply(self, model: nn.Module) -> None:
        """Put the mean in place of the model's weights; nothing happens if there is none."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.mean:
                    parameter.copy_(self.mean[name])


def average_weights(files: Sequence[Path], target: Path, *, shares: Sequence[float] | None = None) -> None:
    """Write the mean of the weights of several runs of one network, whole or not at all.

    Args:
        files: The weights, safetensors.
        target: Where to; may be one of ``files``.
        shares: What each counts, together 1; None: all the same.

    Raises:
        ValueError: If they are not of one network.
    """
    all_weights = [load_file(str(file)) for file in files]
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in all_weights]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"weights of different networks cannot be averaged: {', '.join(map(str, files))}")
    parts = list(zip(all_weights, shares or [1 / len(files)] * len(files), strict=True))
    mean = {name: torch.stack([weights[name] * share for weights, share in parts]).sum(dim=0) for name in shapes[0]}
    partial = target.with_suffix(".partial")
    save_file(mean, str(partial))
    partial.replace(target)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
