"""Means of weights: of runs that differ in their seed, and with the weights of an earlier run.

Sources: model soups (arXiv 2203.05482) and WiSE-FT (arXiv 2109.01903).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from protector_guardrails.training.detector import DetectorTrainingConfig, train_detector


def train_with_seeds(config: DetectorTrainingConfig, *, base: Path, resume: bool = False) -> Path:
    """Train with each of ``config.seeds`` and keep the mean of the weights; without seeds, once with ``config.seed``.

    Runs that go on from the same weights end near each other, and their mean is at least as good
    as most of them. The single runs lie in ``seed-N`` within ``config.output``; each holds out
    questions of its own, so metrics are those of the single runs. In the end, ``config.blend`` gets
    its share.

    Args:
        config: The recipe.
        base: As in :func:`~protector_guardrails.training.detector.train_detector`.
        resume: Leave finished runs as they are, and go on with the others.

    Returns:
        ``config.output``.

    Raises:
        ValueError: If the training file has one class only, or is malformed.
    """
    if config.seeds:
        _train_each(config, base=base, resume=resume)
    else:
        train_detector(config, base=base, resume=resume)
    if config.blend is not None:
        kept = config.output / "model.safetensors"
        average_weights([kept, config.blend], kept, shares=[1 - config.blend_share, config.blend_share])
    return config.output


def _train_each(config: DetectorTrainingConfig, *, base: Path, resume: bool) -> None:
    alone = {"seeds": (), "blend": None, "blend_share": 0.0}
    runs = [
        config.model_copy(update={**alone, "seed": seed, "output": config.output / f"seed-{seed}"})
        for seed in config.seeds
    ]
    for run in runs:
        if not (resume and _finished(run)):
            train_detector(run, base=base, resume=resume)
    metrics = [
        json.dumps({"seed": run.seed, **json.loads(line)})
        for run in runs
        for line in (run.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    (config.output / "metrics.jsonl").write_text("".join(f"{line}\n" for line in metrics), encoding="utf-8")
    (config.output / "config.json").write_text(config.model_dump_json(indent=2))
    shutil.copy(runs[0].output / "tokenizer.json", config.output)
    average_weights([run.output / "model.safetensors" for run in runs], config.output / "model.safetensors")


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


def _finished(run: DetectorTrainingConfig) -> bool:
    path = run.output / "config.json"
    if not (path.is_file() and (run.output / "model.safetensors").is_file()):
        return False
    before = DetectorTrainingConfig.model_validate_json(path.read_text())
    return before.model_copy(update={"output": run.output}) == run
