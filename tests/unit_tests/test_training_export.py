"""A miniature of the road from training to a detector that ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
import torch
from sklearn.metrics import roc_auc_score
from tiny_models import WORDS, write_tiny_base
from tokenizers import Tokenizer

from protector_guardrails import EmbeddedDetector, Exchange
from protector_guardrails.detectors.encoding import PairEncoder, pad_windows
from protector_guardrails.models import CARD, load_manifest
from protector_guardrails.models.base_weights import minilm_folder
from protector_guardrails.training.calibration import (
    calibrate,
    expected_calibration_error,
    fit,
    named_thresholds,
    quiet_bias,
)
from protector_guardrails.training.categories import CATEGORIES
from protector_guardrails.training.data import LabelledExchange
from protector_guardrails.training.detector import DetectorTrainingConfig, train_detector
from protector_guardrails.training.export import export_detector, load_run, quantise, to_onnx, validation_outputs
from protector_guardrails.training.model import HarmClassifier


def write_rows(path: Path, *, count: int, seed: int) -> Path:
    """Answers in which the colour blue stands for harm."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for number in range(count):
            harmful = bool(number % 2)
            words = [str(word) for word in rng.choice(WORDS, size=int(rng.integers(4, 60)))]
            if harmful:
                words[int(rng.integers(len(words)))] = "blue"
            row = {"id": number, "source": "tiny", "license": "CC0-1.0", "question": f"the {words[0]} {number}"}
            row["category"] = ("hate", "privacy")[number // 2 % 2]
            words[0] = ("river", "lamp")[number // 2 % 2]
            file.write(json.dumps({**row, "response": " ".join(words), "harmful": harmful}) + "\n")
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    root = tmp_path_factory.mktemp("export")
    base = write_tiny_base(root / "base", layers=2)
    train = write_rows(root / "train.jsonl", count=320, seed=1)
    validation = write_rows(root / "validation.jsonl", count=120, seed=2)
    config = DetectorTrainingConfig(
        train=train,
        validation=(validation,),
        output=root / "run",
        epochs=10,
        learning_rate=3e-3,
        max_tokens=32,
        question_tokens=8,
        overlap=4,
        max_windows=4,
        bf16=False,
    )
    run = train_detector(config, base=base)
    output = export_detector(run, validation=[validation], output=root / "detector", base=base, name="tiny")
    return output, run, base, validation


def test_exported_detector_has_learnt_what_it_was_shown(exported: tuple[Path, Path, Path, Path]) -> None:
    output, _, _, validation = exported
    rows = [json.loads(line) for line in validation.read_text().splitlines()]
    verdicts = EmbeddedDetector(output).detect([Exchange(response=row["response"]) for row in rows])
    labels = [row["harmful"] for row in rows]
    assert roc_auc_score(labels, [verdict.score for verdict in verdicts]) > 0.95
    assert np.mean([v.harmful == label for v, label in zip(verdicts, labels, strict=True)]) > 0.85
    assert verdicts[0].detector.startswith("tiny@")


def test_card_tells_data_recipe_and_measured_figures(exported: tuple[Path, Path, Path, Path]) -> None:
    output, _, _, _ = exported
    card, manifest = (output / CARD).read_text(), load_manifest(output)
    assert "| tiny | CC0-1.0 | 320 | 160 |" in card
    assert "| seed | 13 |" in card
    assert f"{manifest.metrics['validation']['full']['tiny']['auroc']:.3f}" in card
    assert "{" not in card, "a placeholder was left"
    assert str(output.parent) not in card, "a path of this machine"


def test_card_tells_every_stage_once_those_of_a_blend_too(
    exported: tuple[Path, Path, Path, Path], tmp_path: Path
) -> None:
    _, run, base, validation = exported
    trained = DetectorTrainingConfig.model_validate_json((run / "config.json").read_text())

    def stage(name: str, **changes: object) -> Path:
        folder = shutil.copytree(run, tmp_path / name)
        config = trained.model_copy(update={"output": folder, **changes})
        (folder / "config.json").write_text(config.model_dump_json())
        return folder / "model.safetensors"

    first = stage("first", epochs=1)
    second, third = (stage(name, initial=first, epochs=n) for n, name in ((2, "second"), (3, "third")))
    last = stage("last", initial=second, blend=third, blend_share=0.25, epochs=4)
    export_detector(last.parent, validation=[validation], output=tmp_path / "detector", base=base, name="tiny")
    card = (tmp_path / "detector" / CARD).read_text()
    assert "| epochs | 1 | 2 | 3 | 4 |" in card
    assert "| goes on from | the base | stage 1 | stage 1 | stage 2 |" in card
    assert "| blend share | 0.0 | 0.0 | 0.0 | 0.25 of stage 3 |" in card

    (tmp_path / "third" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"third.config\.json is missing"):
        export_detector(last.parent, validation=[validation], output=tmp_path / "again", base=base, name="tiny")


def test_what_was_judged_before_is_used_for_the_same_texts_only(
    exported: tuple[Path, Path, Path, Path], tmp_path: Path
) -> None:
    detector, cache = EmbeddedDetector(exported[0]), tmp_path / "outputs.json"
    one, other = (LabelledExchange("1", "tiny", "", "", response, True) for response in ("a blue river", "a lamp"))
    first, second = (validation_outputs(detector, [row], cache=cache)["full"] for row in (one, other))
    again = validation_outputs(detector, [other], cache=cache)["full"]
    assert not np.array_equal(first, second) and np.array_equal(second, again)


def test_an_export_that_fails_leaves_the_detector_that_was(
    exported: tuple[Path, Path, Path, Path], tmp_path: Path
) -> None:
    output, run, base, validation = exported
    folder = shutil.copytree(output, tmp_path / "detector")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    one_class = tmp_path / "one_class.jsonl"
    one_class.write_text("".join(line for line in validation.open() if '"harmful": true' in line))
    run = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(ValueError, match="harmful and harmless"):
        export_detector(run, validation=[one_class], output=folder, base=base, name="tiny")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_both_outputs_are_exported_and_the_categories_are_calibrated(exported: tuple[Path, Path, Path, Path]) -> None:
    output, _, _, validation = exported
    manifest = load_manifest(output)
    assert manifest.categories == tuple(map(str, CATEGORIES))
    measured = manifest.metrics["categories"]["response"]["tiny"]
    assert measured["rows"] == 60 and measured["categories"] == 2
    rows = [json.loads(line) for line in validation.read_text().splitlines()]
    verdicts = EmbeddedDetector(output).detect([Exchange(response=row["response"]) for row in rows if row["harmful"]])
    named = [max(verdict.categories, default="", key=lambda name: verdict.categories[name]) for verdict in verdicts]
    assert np.mean([name != "" for name in named]) == pytest.approx(measured["told"], abs=1e-4)
    assert not manifest.thresholds, "there are no answers of multimodal models here"


def test_int8_agrees_with_pytorch_on_a_trained_network(exported: tuple[Path, Path, Path, Path]) -> None:
    output, run, base, validation = exported
    model, _ = load_run(run, base=base)
    detector = EmbeddedDetector(output)
    texts = [json.loads(line)["response"] for line in validation.read_text().splitlines()]
    windows = [window for text in texts for window in detector.encode([Exchange(response=text)])[0]]
    with torch.inference_mode():
        expected = np.concatenate(
            [model.window_logits(**{k: torch.from_numpy(v) for k, v in pad_windows([w]).items()}) for w in windows]
        )
    got = detector.window_logits(windows)
    assert np.corrcoef(expected, got)[0, 1] > 0.99
    assert np.mean((expected > 0) == (got > 0)) > 0.97


def test_onnx_agrees_with_pytorch_on_real_text(tmp_path: Path) -> None:
    """The real architecture and base weights: float32 to rounding, int8 to a small fraction of the spread."""
    import onnxruntime

    base = minilm_folder()
    torch.manual_seed(0)
    model = HarmClassifier.from_base(base).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)
    encoder = PairEncoder(Tokenizer.from_file(str(base / "tokenizer.json")))
    to_onnx(model, encoder, tmp_path / "float32.onnx")
    quantise(tmp_path / "float32.onnx", tmp_path / "int8.onnx")
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    pieces = [
        text[start : start + length] for start, length in zip(range(0, 9600, 400), range(40, 1000, 40), strict=True)
    ]
    windows = [window for piece in pieces for window in encoder.encode([("What does it say?", [piece])])[0]]
    with torch.inference_mode():
        expected = np.concatenate(
            [model.window_logits(**{k: torch.from_numpy(v) for k, v in pad_windows([w]).items()}) for w in windows]
        )
    got = {}
    for name in ("float32", "int8"):
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        got[name] = np.concatenate([session.run(["logits"], pad_windows([window]))[0] for window in windows])
    operations = [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node]
    assert operations.count("QAttention") == 6, "attention is one operation in each layer"
    assert np.abs(got["float32"] - expected).max() < 1e-3
    # A random head, unlike a trained one, reads all directions, so single windows may be off by more.
    assert np.abs(got["int8"] - expected).mean() < 0.2 * expected.std()
    assert np.corrcoef(got["int8"], expected)[0, 1] > 0.97


def test_calibration_recovers_a_known_temperature_and_bias() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=4, size=20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-(logits / 2.5 - 1.0)))
    temperature, bias = fit(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.05)
    assert bias == pytest.approx(-1.0, rel=0.1)


def test_calibration_refuses_a_detector_that_ranks_backwards() -> None:
    with pytest.raises(ValueError, match="below harmless"):
        fit(np.array([3.0, 2.0, -2.0, -3.0]), np.array([False, False, True, True]))


def test_expected_calibration_error_by_hand() -> None:
    probabilities = np.array([0.05, 0.05, 0.95, 0.95])
    labels = np.array([False, True, True, True])
    # Two bins of two: |0.05 - 0.5| / 2 + |0.95 - 1.0| / 2.
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(0.25)


def test_named_thresholds_flag_no_more_than_they_say_in_any_mode() -> None:
    rows = [
        LabelledExchange(str(n), ("mmvet", "msts_textonly", "pyrit_harm")[n % 3], "", "", "r", harmful=n % 5 == 0)
        for n in range(3000)
    ]
    rng = np.random.default_rng(0)
    scores = {"full": rng.random(3000), "response": rng.random(3000) ** 2}
    harmless = np.array([not row.harmful and row.source != "pyrit_harm" for row in rows])
    thresholds = named_thresholds(rows, scores)
    for name, rate in (("fpr-0.5%", 0.005), ("fpr-1%", 0.01), ("fpr-5%", 0.05)):
        flagged = [float((values[harmless] >= thresholds[name]).mean()) for values in scores.values()]
        assert max(flagged) <= rate
        assert max(flagged) > rate - 0.003, "no higher than needed"
    assert named_thresholds(rows[2::3], {"full": scores["full"][2::3]}) == {}


def test_the_bias_keeps_ordinary_answers_below_the_middle_in_every_mode() -> None:
    rng = np.random.default_rng(4)
    rows = [
        LabelledExchange(str(n), "mmmu_pro" if n % 2 else "pyrit_harm", "", "", "r", harmful=False) for n in range(4000)
    ]
    logits = {"full": rng.normal(-3, 2, size=4000), "response": rng.normal(-2, 2, size=4000)}
    bias = quiet_bias(rows, logits, 1.5, rate=0.005)
    flagged = [float((values[1::2] / 1.5 + bias >= 0).mean()) for values in logits.values()]
    assert 0.004 <= max(flagged) <= 0.005
    assert quiet_bias(rows[::2], {"full": logits["full"][::2]}, 1.5) == float("inf")


def test_the_share_of_ordinary_answers_flagged_is_measured_on_questions_that_were_not_fitted() -> None:
    rng = np.random.default_rng(7)
    rows = [LabelledExchange(str(n), "mmvet", f"question {n}", "", f"answer {n}", False) for n in range(1000)]
    rows += [LabelledExchange(str(n), "other", f"request {n}", "", f"reply {n}", True) for n in range(1000)]
    logits = {"full": np.concatenate([rng.normal(-1, 1, 1000), rng.normal(1, 1, 1000)])}
    found = calibrate(rows, logits)
    assert (found.probabilities(logits["full"][:1000]) >= 0.5).mean() == 0.005
    assert 0 < found.metrics["ordinary_flagged"]["full"] < 0.03
