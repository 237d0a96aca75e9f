"""The model card of a trained detoxifier, written from the files of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protector_guardrails.detoxifiers.prompting import TEMPLATES
from protector_guardrails.training.curves import curve_table
from protector_guardrails.training.lora_card import read_json, settings_table, sources_table

_CARD = """# Model card: {name} {version}

A detoxifier: a LoRA adapter on `{base}`. It reads a question and an answer that was found harmful, and
writes a harmless one instead. It is the second half of MLLM-Protector (arXiv 2401.02906).

| | |
|---|---|
| base | `{base}`; its licence holds for what is made from it |
| form | LoRA adapter, rank {rank}, safetensors |
| prompt | `{template}`, in `prompt_template.json` beside the weights |
| reads | {max_prompt_tokens} tokens at most with the prompt; of longer answers the beginning |
| writes | learnt on {max_target_tokens} tokens at most |

## Use

Behind a harm detector, which judges what it writes once more: a rewrite that is still harmful, or empty, gives way to
a refusal. Not for answers that were not found harmful, and not as a chat model: it knows one task.

## Results

{results}

## Data

{pairs} pairs, shown {shown} times in all. What is to be written in each is harmless by its source or
its label.

{sources}

{left_out}
{earlier}
## Recipe

The loss is cross-entropy on the tokens of what should be written, and on no others. The weights kept are those with the
lowest held-out loss, if anything was held out.

{recipe}

## Curves

{curves}
{picture}
## Limits

- It may write something that is off the point, or wrong: harmless does not mean correct.
- Help lines, laws and numbers that it names can be wrong, or of another country.
- It can keep harm that it does not recognise. That is why its text is judged again.
- It sees no image: what a picture shows it knows from a description, or not at all.
- It writes in the language of its data.
"""

_NOT_RECIPE = {
    *("train", "answers", "output", "initial", "limit", "threads", "save_steps", "columns", "format", "template"),
    *("max_prompt_tokens", "max_target_tokens", "lora_rank"),
}


def detoxifier_card(
    run: Path, *, metrics: Mapping[str, Any], base: str, name: str, version: str, curves: Path | None = None
) -> str:
    """Write the card of a finished run from its ``config.json``, ``data.json`` and ``history.json``.

    Args:
        run: Folder of the run.
        metrics: What was measured, by name: numbers, texts, or a mapping of those for each setting or
            data set; empty if nothing but the loss was.
        base: The base, as its users know it.
        name: What the detoxifier is called.
        version: Its version.
        curves: A picture of the losses in the same folder.

    Example:
        A metric for each of two detoxifiers becomes a table of two rows:
        ``{"echo": {"AUROC": 0.9, "empty": 0.0}, "ours": {"AUROC": 0.8, "empty": 0.01}}``.
    """
    config, data, history = (read_json(run / f"{file}.json") for file in ("config", "data", "history"))
    return _CARD.format(
        name=name,
        version=version,
        base=base,
        rank=config["lora_rank"],
        template=TEMPLATES[config["template"]].name,
        max_prompt_tokens=config["max_prompt_tokens"],
        max_target_tokens=config["max_target_tokens"],
        results=_results(metrics),
        pairs=data["pairs"],
        shown=data["shown"],
        sources=sources_table(data["sources"]),
        left_out=_left_out(data["left_out"]),
        earlier=_earlier(data.get("earlier")),
        recipe=settings_table(config, leave_out=_NOT_RECIPE),
        curves=curve_table(history) if history else "Nothing was logged.",
        picture=f"\n![loss by epoch]({curves.name})\n" if curves else "",
    )


def _earlier(data: Mapping[str, Any] | None) -> str:
    if not data:
        return ""
    return (
        f"\nIt went on from an adapter that had learnt from {data['pairs']} pairs, shown {data['shown']} times:\n\n"
        f"{sources_table(data['sources'])}\n{_earlier(data.get('earlier'))}"
    )


def _results(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "Nothing but the held-out loss below was measured. Measure its rewrites on data of yours."
    parts = []
    plain = {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in metrics.items() if isinstance(value, Mapping)}
    if plain:
        parts.append(_table([["measure", "value"], *([name, _figure(value)] for name, value in plain.items())]))
    if nested:
        columns = list(dict.fromkeys(column for row in nested.values() for column in row))
        rows = [[name, *(_figure(row.get(column, "")) for column in columns)] for name, row in nested.items()]
        parts.append(_table([["", *columns], *rows]))
    return "\n\n".join(parts)


def _table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _left_out(counts: Mapping[str, int]) -> str:
    told = [f"{count} for the reason: {why}" for why, count in counts.items() if count]
    return f"Left out: {'; '.join(told)}." if told else "Nothing was left out."
