"""From a run to a detoxifier that can be published: an adapter in half precision, its manifest and its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from protector_guardrails.detoxifiers.prompting import TEMPLATE_FILE
from protector_guardrails.evaluation.rewrites import DetoxifierEvaluation
from protector_guardrails.models import CARD, DETOXIFIER_MANIFEST, DetoxifierManifest
from protector_guardrails.models.hashing import sha256_of
from protector_guardrails.training.detox_card import detoxifier_card

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_RATES = ("empty", "echoing", "still_harmful", "refusing", "on_topic", "on_topic_by_chance", "repeated")


def export_detoxifier(
    run: Path,
    *,
    output: Path,
    base: str,
    base_sha256: str,
    name: str,
    version: str,
    max_echo: float = 0.3,
    results: DetoxifierEvaluation | None = None,
) -> Path:
    """Write the folder of a detoxifier, whole or not at all.

    Args:
        run: Folder of a finished training run.
        output: Folder to write; one that is there is replaced.
        base: Repository of the base weights on the model hub.
        base_sha256: sha256 of the file of base weights that it was trained on.
        name: What it is called.
        version: Its version.
        max_echo: Share of the response that may come back.
        results: What was measured on its rewrites.

    Raises:
        ValueError: If the run has no adapter.
    """
    adapter = run / "adapter"
    if not (adapter / _WEIGHTS).is_file():
        raise ValueError(f"{run} holds no {_WEIGHTS}: is it the folder of a finished run of train detoxifier?")
    recipe = json.loads((run / "config.json").read_text(encoding="utf-8"))
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {key: tensor.to(torch.float16) for key, tensor in load_file(str(adapter / _WEIGHTS)).items()}
    save_file(weights, str(partial / _WEIGHTS), metadata={"format": "pt"})
    (partial / _WEIGHTS).chmod(0o644)  # safetensors makes files for their owner only
    settings = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base, "target_modules": sorted(settings["target_modules"])}
    (partial / _CONFIG).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / TEMPLATE_FILE, partial / TEMPLATE_FILE)
    metrics = _metrics(results)
    manifest = DetoxifierManifest(
        name=name,
        version=version,
        base=base,
        base_sha256=base_sha256,
        max_new_tokens=recipe["max_target_tokens"],
        max_prompt_tokens=recipe["max_prompt_tokens"],
        max_echo=max_echo,
        sha256={file: sha256_of(partial / file) for file in (_CONFIG, _WEIGHTS, TEMPLATE_FILE)},
        metrics=metrics,
    )
    (partial / DETOXIFIER_MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    card = detoxifier_card(run, metrics=metrics, base=base, name=name, version=version)
    (partial / CARD).write_text(card, encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    return output


def _metrics(results: DetoxifierEvaluation | None) -> dict[str, Any]:
    """Source to its figures; rates as shares."""
    if results is None:
        return {}
    return {
        one.source: {
            "answers": one.answers,
            **{rate.replace("_", " "): getattr(one, rate).value for rate in _RATES},
            "words": one.words,
            "seconds": one.seconds,
        }
        for one in results.figures
    }
