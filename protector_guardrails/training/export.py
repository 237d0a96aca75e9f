"""From a training run to a detector that ships: ONNX, int8, calibration, manifest, card."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel

from protector_guardrails import __version__
from protector_guardrails.detectors.embedded import EmbeddedDetector
from protector_guardrails.detectors.encoding import PairEncoder, pad_windows, pool_logits, pool_weights
from protector_guardrails.models import CARD, MANIFEST, DetectorManifest
from protector_guardrails.models.base_weights import sha256_of
from protector_guardrails.training.calibration import calibrate
from protector_guardrails.training.card import detector_card
from protector_guardrails.training.categories import CATEGORIES
from protector_guardrails.training.category_calibration import calibrate_categories
from protector_guardrails.training.data import LabelledExchange
from protector_guardrails.training.detector import DetectorTrainingConfig, training_rows
from protector_guardrails.training.model import HarmClassifier
from protector_guardrails.training.readings import describe_sources, labelled
from protector_guardrails.types import Exchange, Image

MODES = ("full", "response")
"""With question and image descriptions, and from the response alone."""


def load_run(run: Path, *, base: Path) -> tuple[HarmClassifier, DetectorTrainingConfig]:
    """The trained network of a run, and the configuration it was trained with."""
    config = DetectorTrainingConfig.model_validate_json((run / "config.json").read_text())
    encoder = AutoModel.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.from_pretrained(str(base), trust_remote_code=False), add_pooling_layer=False
    )
    weights = load_file(str(run / "model.safetensors"))
    head = weights.get("category_head.bias")
    model = HarmClassifier(encoder, categories=0 if head is None else len(head))
    model.load_state_dict(weights)
    return model.eval(), config


class _WindowOutputs(nn.Module):
    """The part of the network that is exported: windows in, logits of harm and of categories out."""

    def __init__(self, model: HarmClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        logits, categories = self.model.window_outputs(input_ids, attention_mask, token_type_ids)
        return logits if categories is None else (logits, categories)


def to_onnx(model: HarmClassifier, encoder: PairEncoder, path: Path) -> None:
    """Write the network in float32 with free batch size and sequence length.

    Attention, the embeddings and the activations become single operations of the runtime. PyTorch's
    older exporter is used for it: the graph optimiser does not recognise what the newer one writes.
    """
    windows = [
        window for windows in encoder.encode([("a question", ["one answer"]), (None, ["two"])]) for window in windows
    ]
    sample = {name: torch.from_numpy(array) for name, array in pad_windows(windows).items()}
    outputs = ["logits", *(["category_logits"] if model.category_head is not None else [])]
    model = deepcopy(model).eval()
    model.encoder.set_attn_implementation("eager")  # type: ignore[operator] # the form that the optimiser knows
    size: Any = model.encoder.config
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # notes of the exporter on its own internals and age
        plain = Path(folder) / "plain.onnx"
        torch.onnx.export(
            _WindowOutputs(model),
            tuple(sample.values()),
            str(plain),
            dynamo=False,
            opset_version=17,
            input_names=list(sample),
            output_names=outputs,
            dynamic_axes={
                **{name: {0: "windows", 1: "tokens"} for name in sample},
                **{name: {0: "windows"} for name in outputs},
            },
        )
        fused = optimize_model(
            str(plain),
            model_type="bert",
            num_heads=size.num_attention_heads,
            hidden_size=size.hidden_size,
            opt_level=0,
        )
        fused.save_model_to_file(str(path))


def quantise(source: Path, target: Path) -> None:
    """Dynamic int8 quantisation of weights, embeddings included; activations are quantised at run time."""
    quantize_dynamic(
        str(source),
        str(target),
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # what fused operations give is not inferred
    )
    _strip_traces(target)


def _strip_traces(path: Path) -> None:
    """Take out what the exporter notes of every node: lines of code, with the paths of the machine it ran on."""
    model = onnx.load(str(path))
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, str(path))


def export_detector(
    run: Path,
    *,
    validation: Sequence[Path],
    output: Path,
    base: Path,
    name: str = "embedded",
    normalise: bool = False,
) -> Path:
    """Export a trained detector, calibrate it on validation data and write its card.

    What is calibrated and measured is the int8 model as it ships, run by
    :class:`EmbeddedDetector`, not the network it came from.

    Args:
        run: Folder of a finished training run.
        validation: Labelled files that were never trained on; of files of pairs, the answers kept apart.
        output: Folder to write; existing files of a detector there are replaced when everything else is done.
        base: Folder of the base encoder (its configuration is needed).
        name: Name of the detector, as it will stand in verdicts.
        normalise: Whether it judges responses without their disguises, here and wherever it is used
            (:mod:`protector_guardrails.detectors.normalising`).

    Returns:
        ``output``.

    Raises:
        ValueError: If a file of rows is malformed, or an earlier run's settings are missing.
    """
    model, config = load_run(run, base=base)
    stages = [*_earlier_stages(config), config]
    rows = [row for path in validation for row in labelled(path, apart=True)]
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".export-") as unfinished:
        made = Path(unfinished)
        tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
        encoder = PairEncoder(
            tokenizer, max_tokens=config.max_tokens, question_tokens=config.question_tokens, overlap=config.overlap
        )
        tokenizer.save(str(made / "tokenizer.json"), pretty=False)
        full_precision = run / "model.float32.onnx"
        to_onnx(model, encoder, full_precision)
        quantise(full_precision, made / "model.onnx")

        manifest = DetectorManifest(
            name=name,
            version=__version__,
            max_tokens=config.max_tokens,
            question_tokens=config.question_tokens,
            overlap=config.overlap,
            temperature=1.0,
            bias=0.0,
            categories=tuple(map(str, CATEGORIES)) if model.category_head is not None else (),
            normalise=normalise,
            sha256={file: sha256_of(made / file) for file in ("model.onnx", "tokenizer.json")},
        )
        _write_manifest(made, manifest)

        outputs = validation_outputs(EmbeddedDetector(made), rows, cache=run / "validation-outputs.json")
        manifest = _calibrated(manifest, rows, outputs)
        _write_manifest(made, manifest)
        card = detector_card(
            manifest,
            stages=stages,
            history=history,
            sources=describe_sources(config.train),
            learnt_from=len(training_rows(config)),
            size_bytes=(made / "model.onnx").stat().st_size,
        )
        (made / CARD).write_text(card, encoding="utf-8")
        # The manifest last: until it is there, the files do not match the one that was.
        for file in ("tokenizer.json", "model.onnx", CARD, MANIFEST):
            (made / file).replace(output / file)
    return output


def _earlier_stages(config: DetectorTrainingConfig) -> list[DetectorTrainingConfig]:
    """The configurations of the runs that this one went on from, or took a share of, the first one first."""
    stages: dict[Path, DetectorTrainingConfig] = {}
    for weights in filter(None, (config.initial, config.blend)):
        path = weights.parent / "config.json"
        if not path.exists():
            raise ValueError(
                f"{path} is missing: the card cannot tell how the weights that the run began with were trained"
            )
        # Where it lies now, which need not be where it was written.
        earlier = DetectorTrainingConfig.model_validate_json(path.read_text()).model_copy(
            update={"output": weights.parent}
        )
        for stage in (*_earlier_stages(earlier), earlier):
            stages.setdefault(stage.output, stage)
    return list(stages.values())


def _calibrated(
    manifest: DetectorManifest, rows: Sequence[LabelledExchange], outputs: Mapping[str, np.ndarray[Any, Any]]
) -> DetectorManifest:
    harm = calibrate(rows, {mode: values[:, 0] for mode, values in outputs.items()})
    update: dict[str, Any] = {
        "temperature": harm.temperature,
        "bias": harm.bias,
        "thresholds": harm.thresholds,
        "metrics": harm.metrics,
    }
    kinds = calibrate_categories(rows, {m: v[:, 1:] for m, v in outputs.items()}) if manifest.categories else None
    if kinds is not None:
        update |= {
            "category_temperature": kinds.temperature,
            "category_floor": kinds.floor,
            "metrics": {**harm.metrics, "categories": kinds.metrics},
        }
    return manifest.model_copy(update=update)


def as_exchange(row: LabelledExchange, mode: str) -> Exchange:
    """A row as the detector is shown it: in the mode ``"response"`` without its question."""
    if mode == "response":
        return Exchange(response=row.response)
    images = (Image(description=row.description),) if row.description else ()
    return Exchange(response=row.response, question=row.question or None, images=images)


def validation_outputs(
    detector: EmbeddedDetector, rows: Sequence[LabelledExchange], *, cache: Path | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """What the network says of every row, pooled over its windows, in both modes.

    Shows its progress on the terminal, since it takes minutes.

    Args:
        detector: The detector.
        rows: The rows.
        cache: Kept there, for the same detector and the same texts.

    Returns:
        Mode to an array (rows, 1 + categories): raw logit of harm, and raw category logits.
    """
    texts = json.dumps([[row.question, row.description, row.response] for row in rows])
    described = detector.manifest.model_dump(
        include={"sha256", "normalise", "max_tokens", "question_tokens", "overlap", "categories"}, mode="json"
    )
    key = [described, hashlib.sha256(texts.encode()).hexdigest()]
    if cache and cache.exists():
        stored = json.loads(cache.read_text())
        if stored["key"] == key:
            return {mode: np.array(values) for mode, values in stored["outputs"].items()}
    from rich.progress import track

    result: dict[str, np.ndarray[Any, Any]] = {}
    for mode in MODES:
        pooled = []
        for row in track(rows, description=f"judging validation rows ({mode})"):
            (windows,) = detector.encode([as_exchange(row, mode)])
            each = detector.window_outputs(windows)
            pooled.append([pool_logits(each[:, 0]), *(pool_weights(each[:, 0]) @ each[:, 1:])])
        result[mode] = np.array(pooled)
    if cache:
        cache.write_text(json.dumps({"key": key, "outputs": {m: v.tolist() for m, v in result.items()}}))
    return result


def _write_manifest(output: Path, manifest: DetectorManifest) -> None:
    (output / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
