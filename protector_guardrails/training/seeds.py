"""Runs of one recipe that differ in their seed, and the mean of their weights (model soups, arXiv 2203.05482)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from protector_guardrails.training.averaging import average_weights
from protector_guardrails.training.detector import DetectorTrainingConfig, blend, train_detector


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
    if not config.seeds:
        return train_detector(config, base=base, resume=resume)
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
    blend(config)
    return config.output


def _finished(run: DetectorTrainingConfig) -> bool:
    path = run.output / "config.json"
    if not (path.is_file() and (run.output / "model.safetensors").is_file()):
        return False
    before = DetectorTrainingConfig.model_validate_json(path.read_text())
    return before.model_copy(update={"output": run.output}) == run
