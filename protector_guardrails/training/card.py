"""The model card of a trained detector, written by the run that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protector_guardrails.models import DetectorManifest
from protector_guardrails.training.detector import DetectorTrainingConfig

_MODES = {"full": "question and image description", "response": "response alone"}

_NORMALISED = (
    "Look-alike letters, invisible characters, spaced-out words, leetspeak, base64, hexadecimal and ROT13 are undone "
    "before it reads; other ciphers are not."
)
_NOT_NORMALISED = "Ciphers, encoded text and deliberate misspelling were not trained for."

_CARD = """# Model card: {name} {version}

A harm detector for what multimodal models answer: it reads a response, and where they are known the
question and a description of the images, and gives P(harm). It is the detector half of MLLM-Protector
(arXiv 2401.02906) in miniature.

| | |
|---|---|
| base | `sentence-transformers/all-MiniLM-L6-v2`, 22.7 M parameters, Apache-2.0 |
| heads | mean pooling; per window of {max_tokens} tokens one logit of harm, and one of each category |
| windows | combined by the mean that is weighted by the softmax of their logits of harm |
| form | ONNX, int8 (dynamic quantisation), {size_mb:.1f} MB; `model.onnx` sha256 `{sha256}` |
| language | English |
| licence | Apache-2.0; the data it learnt from is listed below |

## Use

For judging answers of chat models before a person sees them, with a person or a policy deciding what follows.
Not for judging people, not as the only safeguard where a wrong verdict endangers somebody, and not as a
filter of what users ask: it was trained on responses.

## Results on validation data

None of these rows was trained on. Harmful means a score of at least 0.5. The figures are those of the int8
model as it ships. `mllm_responses` are answers of ten multimodal models to unsafe questions about images, labelled
by people; `pyrit_harm` holds answers with severity scores given by people; `real_mllm_benign` joins ordinary
answers of multimodal models (`mmvet`, `mmmu_pro`); `contrast` is what was kept apart of the project's own material.
"No refusals" is the AUROC without the answers that begin like a refusal.

{results}

The thresholds and the calibration were chosen on this data, so expect somewhat worse on yours.

**Thresholds.** {thresholds}

**Categories.** {categories}

**Calibration.** The score is `sigmoid(logit / {temperature:.4f} + {bias:.4f})`, fitted on the validation rows; the bias
is lowered as far as it takes for at most 0.5 % of the ordinary answers to reach 0.5.
Expected calibration error with 15 bins, fitted on one half of the questions and measured on the other:
{calibration}.{ordinary}

## Training

{recipe}

Questions are held out whole ({held_out} of them), so that no question is on both sides of the split. In each
epoch a source gives at most {cap} rows per label and {answers_per_question} answers per question and label, and a
label that is rare within its source is repeated up to {max_repeats} times. A later stage goes on from the weights
of an earlier one; with several seeds it is trained once with each and the mean of the weights is kept; with a blend
share, that share of the weights is an earlier stage's. With insertions, that many harmless answers an epoch get a
harmful and, once more, a harmless passage put into them; with gives in, that many harmful answers begin with a
refusal. The loss is binary cross-entropy on the combined logit of a response, and where the category is known,
cross-entropy on it beside that. Near-identical rows of a source were learnt from once{learnt_from}.

Train it again: `protector train detector DATA --validation FILE --output RUN`, then
`protector train export RUN --validation FILE --output FOLDER`.

### Data

{sources}

### After each epoch

AUROC of the network in training precision, before quantisation{averaged}.

{history}

## Known weaknesses

- It reads words. Harm that lies in the picture alone is invisible to it unless a description is given.
- Short answers that agree to something ("Yes, do.") cannot be told good from bad without the question and the
  description, and not always with them.
- English. Rows of other languages were learnt from, and none is measured here. {disguises}
- Rude chit-chat and biased opinions (`diasafety_val`) are recognised much less well than dangerous instructions.
- Labels of several sources come from other models or from how a data set was built; part of what it learnt is
  their taste.
- Categories were learnt from few rows, most of whose categories were told from words of the question. There was no data
  on the exploitation of children.
"""


def detector_card(
    manifest: DetectorManifest,
    *,
    stages: Sequence[DetectorTrainingConfig],
    history: Sequence[Mapping[str, Any]],
    sources: Sequence[Mapping[str, Any]],
    size_bytes: int,
    learnt_from: int | None = None,
) -> str:
    """Write the card.

    Args:
        manifest: The exported detector, with its metrics.
        stages: How it was trained, run after run, with the runs that these went on from or took a share of, each in
            its ``output``; most detectors have one stage.
        history: Metrics after each epoch, as the training run stored them.
        sources: Per source: ``source``, ``license``, ``rows``, ``harmful``.
        size_bytes: Size of the model file.
        learnt_from: Rows that were left to choose from after cleaning, if known.
    """
    config = stages[-1]
    calibration = manifest.metrics.get("calibration", {})
    return _CARD.format(
        name=manifest.name,
        version=manifest.version,
        size_mb=size_bytes / 1e6,
        sha256=manifest.sha256["model.onnx"],
        temperature=manifest.temperature,
        bias=manifest.bias,
        results=_results(manifest.metrics.get("validation", {})),
        disguises=_NORMALISED if manifest.normalise else _NOT_NORMALISED,
        thresholds=_thresholds(manifest),
        categories=_categories(manifest),
        learnt_from="" if learnt_from is None else f": {learnt_from} rows to choose from",
        calibration=", ".join(f"{value:.3f} ({_MODES[mode]})" for mode, value in calibration.items()),
        ordinary=_ordinary(manifest.metrics.get("ordinary_flagged", {})),
        recipe=_recipe(stages),
        sources=_table(
            ("source", "licence", "rows", "harmful"),
            [(s["source"], s["license"], s["rows"], s["harmful"]) for s in sources],
        ),
        history=_history(history),
        averaged=", of each seed's run before their weights were averaged" if config.seeds else "",
        max_tokens=manifest.max_tokens,
        held_out=f"{100 * config.held_out:.3g} %",
        cap=config.cap,
        answers_per_question=config.answers_per_question,
        max_repeats=config.max_repeats,
    )


def _recipe(stages: Sequence[DetectorTrainingConfig]) -> str:
    hidden = {"train", "validation", "output", "initial", "blend", "limit", "threads", "save_steps", "bf16"}
    outputs = [stage.output for stage in stages]
    dumps = [stage.model_dump(exclude=hidden) for stage in stages]
    for stage, dump in zip(stages, dumps, strict=True):
        dump["goes_on_from"] = "the base"
        if stage.initial is not None:
            dump["goes_on_from"] = f"stage {outputs.index(stage.initial.parent) + 1}"
        if stage.blend is not None:
            dump["blend_share"] = f"{stage.blend_share} of stage {outputs.index(stage.blend.parent) + 1}"
    header = ["setting", *(["value"] if len(stages) == 1 else [f"stage {n}" for n in range(1, len(stages) + 1)])]
    return _table(header, [[name.replace("_", " "), *(_plain(dump[name]) for dump in dumps)] for name in dumps[0]])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _figure(entry: Mapping[str, Any], name: str) -> str:
    return f"{entry[name]:.3f}" if name in entry else ""


def _results(validation: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        (
            source,
            _MODES[mode],
            entry["rows"],
            entry["harmful"],
            *(
                _figure(entry, name)
                for name in ("auroc", "auroc_without_refusals", "auprc", "recall", "false_positive_rate")
            ),
        )
        for mode, sources in validation.items()
        for source, entry in sources.items()
    ]
    return _table(
        ("source", "judged from", "rows", "harmful", "AUROC", "no refusals", "AUPRC", "recall", "false positives"), rows
    )


def _thresholds(manifest: DetectorManifest) -> str:
    if not manifest.thresholds:
        return "None but 0.5."
    named = ", ".join(f"`{name}` {score:.4f}" for name, score in manifest.thresholds.items())
    return (
        f"{named}: scores from which at most so many harmless answers of multimodal models (`mmvet`, `mmmu_pro`, and "
        "the harmless ones of `mllm_responses`) are flagged, with the question or without. "
        '`Policy(threshold="fpr-1%")` takes one.'
    )


def _ordinary(flagged: Mapping[str, float]) -> str:
    if not flagged:
        return ""
    shares = ", ".join(f"{value:.2%} ({_MODES[mode]})" for mode, value in flagged.items())
    return f" Of the ordinary answers, {shares} are flagged in that way."


def _categories(manifest: DetectorManifest) -> str:
    measured = manifest.metrics.get("categories", {})
    if not measured:
        return "It tells none."
    rows = [
        (
            source,
            _MODES[mode],
            entry["rows"],
            entry["categories"],
            *(_figure(entry, name) for name in ("macro_f1", "told", "right_when_told")),
        )
        for mode, sources in measured.items()
        for source, entry in sources.items()
    ]
    header = ("source", "judged from", "harmful rows", "categories", "macro-F1", "told", "right when told")
    return (
        f"Told from P(category | harm) {manifest.category_floor:.2f} on, else unspecified. Macro-F1 is over categories "
        "with five rows or more, unspecified counts as wrong. "
        f"Temperature {manifest.category_temperature:.2f}; temperature and floor "
        f"were chosen on these rows.\n\n{_table(header, rows)}"
    )


def _history(history: Sequence[Mapping[str, Any]]) -> str:
    seeds = any("seed" in report for report in history)
    rows = [
        (
            *([report["seed"]] if seeds else []),
            report["epoch"],
            split.replace("_", " "),
            source,
            _figure(full, "auroc"),
            _figure(bare, "auroc"),
        )
        for report in history
        for split in ("held_out", "validation")
        for source, full in report[split].get("full", {}).items()
        if "auroc" in full and (bare := report[split]["response"][source])
    ]
    header = (*(["seed"] if seeds else []), "epoch", "split", "source", _MODES["full"], _MODES["response"])
    return _table(header, rows)
