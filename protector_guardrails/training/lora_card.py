"""The model card of a detector trained with LoRA, written by the run that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protector_guardrails.training.curves import curve_table

_CARD = """# Model card: {name}

A harm detector: a LoRA adapter with a classification head on `{base}`. It reads a question and the answer that a
model gave, or the answer alone, and gives P(harm). The recipe is that of MLLM-Protector (arXiv 2401.02906).

| | |
|---|---|
| base | `{base}`{commit}; its licence holds for what is made from it |
| head | linear, one logit on the last token; `sigmoid(logit)` is **P(harm)**, 1 = harmful |
| text | `{template}`, {max_tokens} tokens at most; of longer texts the beginning of the answer |
| form | LoRA adapter with its head, safetensors |

## Use

`TransformersDetector("adapter", base=..., polarity="harm", template="question+response")` loads the folder `adapter`.

For judging answers of chat models before a person sees them. Not for judging people, and not as the only safeguard
where a wrong verdict endangers somebody.

## Results

{results}

No threshold was chosen and nothing was calibrated: 0.5 is a start. Measure it on data of yours
(`protector evaluate detector`).

## Training

{recipe}

### Data

{sources}

Measured on:

{measured}

### Curves

{curves}
{picture}
## Known weaknesses

- It reads words: harm that lies in the picture alone is invisible to it unless a description is given.
- It knows what its data held, in their languages, and their labels' taste.
- {bare}
"""

_NOT_RECIPE = {"train", "validation", "output", "base", "limit", "threads", "save_steps", "columns", "format"}


def lora_detector_card(run: Path, *, curves: Path | None = None) -> str:
    """Write the card of a finished run from its ``config.json``, ``data.json`` and ``history.json``.

    Args:
        run: Folder of the run.
        curves: A picture in the same folder.
    """
    config, data, history = (read_json(run / f"{name}.json") for name in ("config", "data", "history"))
    base = str(config["base"])
    local = Path(base).is_dir()
    return _CARD.format(
        name=run.resolve().name,
        base=Path(base).resolve().name if local else base,  # where it lay on this machine is nobody's concern
        commit=f", commit {data['base_commit']}" if data.get("base_commit") else "",
        template="Question: ... Answer: ...",
        max_tokens=config["max_tokens"],
        results=_results(history),
        recipe=settings_table(config, leave_out=_NOT_RECIPE),
        sources=sources_table(data["learnt"]),
        measured=sources_table(data["measured"]) if data["measured"] else "nothing: no rows were held out.",
        curves=curve_table(history) if history else "Nothing was logged.",
        picture=f"\n![loss and AUROC by epoch]({curves.name})\n" if curves else "",
        bare=_BARE[config["drop_question"] > 0],
    )


_BARE = {
    True: "Part of the answers were shown without their question, so that it judges both ways.",
    False: "It always saw the question; judging the answer alone, as the paper's inference does, is not what it "
    "learnt. Train with `drop_question` for that.",
}


def _results(history: Sequence[Mapping[str, Any]]) -> str:
    measured = [entry for entry in history if "eval_auroc" in entry]
    if not measured:
        return "Nothing was measured."
    best = max(measured, key=lambda entry: entry["eval_auroc"])
    return (
        f"AUROC **{best['eval_auroc']:.3f}** on the rows named below, which it did not learn from, at step "
        f"{best['step']}. That checkpoint was kept because it was the best on these rows, so expect "
        "somewhat less on others."
    )


def read_json(path: Path) -> Any:
    """One of the run's files."""
    return json.loads(path.read_text(encoding="utf-8"))


def settings_table(config: Mapping[str, Any], *, leave_out: set[str]) -> str:
    """A run's settings in Markdown."""
    lines = ["| setting | value |", "| --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {_plain(config[name])} |" for name in config if name not in leave_out]
    return "\n".join(lines)


def sources_table(sources: Sequence[Mapping[str, Any]]) -> str:
    """Sources with their licences and counts in Markdown."""
    columns = list(sources[0])
    lines = [columns, ["---"] * len(columns), *([str(source.get(name, 0)) for name in columns] for source in sources)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("license", "licence", 1)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
