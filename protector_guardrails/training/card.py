"""The model card of a trained detector, written by the run that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protector_guardrails.models import DetectorManifest
from protector_guardrails.training.detector import DetectorTrainingConfig

_MODES = {"full": "question and image description", "response": "response alone"}

_CARD = """# Model card: {name} {version}

A harm detector for what multimodal models answer: it reads a response, and where they are known the
question and a description of the images, and gives P(harm). It is the detector half of MLLM-Protector
(arXiv 2401.02906) in miniature.

| | |
|---|---|
| base | `sentence-transformers/all-MiniLM-L6-v2`, 22.7 M parameters, Apache-2.0 |
| head | mean pooling, one logit per window of {max_tokens} tokens; windows are combined by softmax-weighted mean |
| form | ONNX, int8 (dynamic quantisation), {size_mb:.1f} MB; `model.onnx` sha256 `{sha256}` |
| language | English |
| licence | Apache-2.0; the data it learnt from is listed below |

## Use

For judging answers of chat models before a person sees them, with a person or a policy deciding what follows.
Not for judging people, not as the only safeguard where a wrong verdict endangers somebody, and not as a
filter of what users ask: it was trained on responses.

## Results on validation data

None of these sources was trained on. Harmful means a score of at least 0.5. The figures are those of the int8
model as it ships. `mllm_responses` are answers of ten multimodal models to unsafe questions about images, labelled
by people; `pyrit_harm` holds answers with severity scores given by people; `real_mllm_benign` joins ordinary
answers of multimodal models (`mmvet`, `mmmu_pro`).

{results}

The thresholds and the calibration were chosen on this data, so expect somewhat worse on yours.

**Calibration.** The score is `sigmoid(logit / {temperature:.4f} + {bias:.4f})`, fitted on the validation rows.
Expected calibration error with 15 bins, fitted on one half of the questions and measured on the other: {calibration}.

## Training

{recipe}

Questions are held out whole ({held_out:.0%} of them), so that no question is on both sides of the split. In each
epoch a source gives at most {cap} rows per label and {answers_per_question} answers per question and label, and a
label that is rare within its source is repeated up to {max_repeats} times. A later stage goes on from the weights
of the one before. With insertions, that many harmless answers an epoch get a harmful and, once more, a harmless
passage put into them. The loss is binary cross-entropy on the
combined logit of a response.

Train it again: `protector train detector DATA --validation FILE --output RUN`, then
`protector train export RUN --validation FILE --output FOLDER`.

### Data

{sources}

### After each epoch

AUROC of the network in training precision, before quantisation.

{history}

## Known weaknesses

- It reads words. Harm that lies in the picture alone is invisible to it unless a description is given.
- Short answers that agree to something dangerous ("Yes, do.") look harmless without the question and the description.
- English only. Other languages, ciphers, encoded text and deliberate misspelling were not trained for.
- Rude chit-chat and biased opinions (`diasafety_val`) are recognised much less well than dangerous instructions.
- Labels of several sources come from other models or from how a data set was built; part of what it learnt is
  their taste.
- It tells no harm category yet.
"""


def detector_card(
    manifest: DetectorManifest,
    *,
    stages: Sequence[DetectorTrainingConfig],
    history: Sequence[Mapping[str, Any]],
    sources: Sequence[Mapping[str, Any]],
    size_bytes: int,
) -> str:
    """Write the card.

    Args:
        manifest: The exported detector, with its metrics.
        stages: How it was trained, run after run; most detectors have one stage.
        history: Metrics after each epoch, as the training run stored them.
        sources: Per source: ``source``, ``license``, ``rows``, ``harmful``.
        size_bytes: Size of the model file.
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
        calibration=", ".join(f"{value:.3f} ({_MODES[mode]})" for mode, value in calibration.items()),
        recipe=_recipe(stages),
        sources=_table(
            ("source", "licence", "rows", "harmful"),
            [(s["source"], s["license"], s["rows"], s["harmful"]) for s in sources],
        ),
        history=_history(history),
        max_tokens=manifest.max_tokens,
        held_out=config.held_out,
        cap=config.cap,
        answers_per_question=config.answers_per_question,
        max_repeats=config.max_repeats,
    )


def _recipe(stages: Sequence[DetectorTrainingConfig]) -> str:
    hidden = {"train", "validation", "output", "initial", "limit", "threads", "save_steps", "bf16"}
    dumps = [stage.model_dump(exclude=hidden) for stage in stages]
    header = ["setting", *(["value"] if len(stages) == 1 else [f"stage {n}" for n in range(1, len(stages) + 1)])]
    return _table(header, [[name.replace("_", " "), *(_plain(dump[name]) for dump in dumps)] for name in dumps[0]])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items()) or "none"
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
            *(_figure(entry, name) for name in ("auroc", "auprc", "recall", "false_positive_rate")),
        )
        for mode, sources in validation.items()
        for source, entry in sources.items()
    ]
    return _table(("source", "judged from", "rows", "harmful", "AUROC", "AUPRC", "recall", "false positives"), rows)


def _history(history: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (report["epoch"], split.replace("_", " "), source, _figure(full, "auroc"), _figure(bare, "auroc"))
        for report in history
        for split in ("held_out", "validation")
        for source, full in report[split].get("full", {}).items()
        if "auroc" in full and (bare := report[split]["response"][source])
    ]
    return _table(("epoch", "split", "source", _MODES["full"], _MODES["response"]), rows)
