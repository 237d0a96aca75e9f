"""A miniature training run: it learns, reports, and goes on where it was interrupted."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from safetensors.torch import load_file, save_file  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from tiny_models import WORDS, write_tiny_base  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from protector_guardrails.detectors.encoding import PairEncoder  # noqa: E402
from protector_guardrails.training import detector as training  # noqa: E402
from protector_guardrails.training import seeds  # noqa: E402
from protector_guardrails.training.averaging import AveragedWeights, average_weights  # noqa: E402
from protector_guardrails.training.categories import CATEGORIES  # noqa: E402
from protector_guardrails.training.data import LabelledExchange, read_exchanges  # noqa: E402
from protector_guardrails.training.detector import (  # noqa: E402
    DetectorTrainingConfig,
    PlannedExchanges,
    bucketed,
    predict,
    save_weights,
    source_metrics,
    train_detector,
)
from protector_guardrails.training.model import NO_CATEGORY, HarmClassifier  # noqa: E402
from protector_guardrails.training.seeds import train_with_seeds  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), layers=1)


def write_rows(path: Path, *, count: int, seed: int, sources: int = 1) -> Path:
    """Answers in which the colour blue stands for harm."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            words = rng.choices(WORDS, k=rng.randint(4, 30))
            if number % 2:
                words[rng.randrange(len(words))] = "blue"
            row = {
                "source": f"source {number // 2 % sources}",
                "question": f"the {words[0]} {number}",
                "image_desc": "a lamp" if number % 3 else None,
                "response": " ".join(words),
                "harmful": bool(number % 2),
            }
            file.write(json.dumps(row) + "\n")
    return path


def config_for(folder: Path, **changes: Any) -> DetectorTrainingConfig:
    fields: dict[str, Any] = {
        "train": write_rows(folder / "train.jsonl", count=64, seed=1),
        "validation": (write_rows(folder / "validation.jsonl", count=40, seed=2, sources=2),),
        "output": folder / "run",
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "max_tokens": 24,
        "question_tokens": 6,
        "overlap": 4,
        "bf16": False,
        "threads": 1,
    }
    return DetectorTrainingConfig(**(fields | changes))


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Learning --------------------------------------------------------------------------------


def test_it_learns_what_it_is_shown_and_reports_per_source(base: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, epochs=20, held_out=0.2)
    run = train_detector(config, base=base)
    rows = read_exchanges(config.validation[0])
    encoder = PairEncoder(Tokenizer.from_file(str(run / "tokenizer.json")), max_tokens=24, question_tokens=6, overlap=4)
    untrained, trained = HarmClassifier.from_base(base), HarmClassifier.from_base(base, categories=len(CATEGORIES))
    trained.load(run / "model.safetensors")
    labels = [row.harmful for row in rows]
    losses, scores = [], []
    for model in (untrained, trained):
        logits = predict(model, encoder, rows, mode="full")
        losses.append(float(np.mean(np.logaddexp(0, np.where(labels, -logits, logits)))))
        scores.append(roc_auc_score(labels, logits))
    assert losses[1] < 0.5 * losses[0]
    assert scores[1] > 0.9

    reports = metrics(run)
    assert [report["epoch"] for report in reports] == list(range(1, 21))
    last = reports[-1]
    assert set(last["validation"]) == set(last["held_out"]) == {"full", "response"}
    assert set(last["validation"]["full"]) == {"source 0", "source 1"}
    for source, entry in last["validation"]["full"].items():
        mine = [i for i, row in enumerate(rows) if row.source == source]
        assert (entry["rows"], entry["harmful"]) == (20, 10)
        assert entry["auroc"] == pytest.approx(roc_auc_score([labels[i] for i in mine], logits[mine]))
    assert all((run / f"epoch-{epoch}.safetensors").exists() for epoch in (1, 20))
    assert DetectorTrainingConfig.model_validate_json((run / "config.json").read_text()) == config


# Going on --------------------------------------------------------------------------------


class PowerCut(TrainerCallback):
    """Stops a run dead after a step, as an exception anywhere in it would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupt(config: DetectorTrainingConfig, base: Path, monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    with monkeypatch.context() as patch:
        trainer = training.ExchangeTrainer
        patch.setattr(
            training,
            "ExchangeTrainer",
            lambda *, callbacks, **rest: trainer(callbacks=[*callbacks, PowerCut(step)], **rest),
        )
        with pytest.raises(KeyboardInterrupt):
            train_detector(config, base=base)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    # 8 steps an epoch; the cut comes after the first report and before the next checkpoint, so that is redone.
    config = config_for(tmp_path, held_out=0.0, epochs=2, save_steps=3, average=average)
    whole = train_detector(config.model_copy(update={"output": tmp_path / "whole"}), base=base)
    interrupt(config, base, monkeypatch, step=8)
    assert [report["epoch"] for report in metrics(config.output)] == [1]
    resumed = train_detector(config, base=base, resume=True)

    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert metrics(resumed) == metrics(whole)
    assert [report["epoch"] for report in metrics(resumed)] == [1, 2]


def test_a_new_run_in_the_same_folder_forgets_the_old_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_detector(config_for(tmp_path, held_out=0.0, epochs=2, save_steps=5, seed=1), base=base)
    config = config_for(tmp_path, held_out=0.0, epochs=2, save_steps=5, seed=2)
    interrupt(config, base, monkeypatch, step=6)
    assert not (config.output / "metrics.jsonl").exists()
    assert not (config.output / "model.safetensors").exists(), "another run's weights would pass for this one's"
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["checkpoint-5"]


def test_resume_without_a_checkpoint_starts_from_the_beginning(base: Path, tmp_path: Path) -> None:
    run = train_detector(config_for(tmp_path, epochs=1, held_out=0.0), base=base, resume=True)
    assert [report["epoch"] for report in metrics(run)] == [1]


# Frozen layers and the mean of the weights -------------------------------------------------


def test_frozen_layers_stay_and_the_kept_weights_are_the_mean_of_the_last_ones(base: Path, tmp_path: Path) -> None:
    run = train_detector(config_for(tmp_path, epochs=1, held_out=0.0, frozen_layers=1, average=0.9), base=base)
    kept, last = load_file(run / "model.safetensors"), load_file(run / "last.safetensors")
    start = HarmClassifier.from_base(base).state_dict()
    for name, tensor in start.items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, last[name]), f"{name} was to stay"
    assert not torch.equal(kept["head.weight"], last["head.weight"])


def test_several_seeds_give_the_mean_of_their_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path, epochs=1, seeds=(3, 4))
    run = train_with_seeds(config, base=base)
    with pytest.raises(ValueError, match="train_with_seeds"):
        train_detector(config, base=base)
    single = [load_file(str(run / f"seed-{seed}" / "model.safetensors")) for seed in (3, 4)]
    mean = load_file(str(run / "model.safetensors"))
    assert not torch.equal(single[0]["head.weight"], single[1]["head.weight"])
    assert all(torch.allclose(mean[name], (single[0][name] + single[1][name]) / 2) for name in mean)
    assert [(report["seed"], report["epoch"]) for report in metrics(run)] == [(3, 1), (4, 1)]
    assert DetectorTrainingConfig.model_validate_json((run / "config.json").read_text()) == config

    trained: list[int] = []
    monkeypatch.setattr(seeds, "train_detector", lambda config, **rest: trained.append(config.seed))
    (run / "seed-4" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):  # nothing was really trained in its place
        train_with_seeds(config, base=base, resume=True)
    assert trained == [4], "what is finished is left as it is"


def test_an_earlier_run_takes_its_share_of_the_weights(base: Path, tmp_path: Path) -> None:
    first = train_detector(config_for(tmp_path, epochs=1, output=tmp_path / "first"), base=base)
    plain = train_with_seeds(config_for(tmp_path, epochs=1, seed=5, output=tmp_path / "plain"), base=base)
    blended = train_with_seeds(
        config_for(
            tmp_path,
            epochs=1,
            seed=5,
            output=tmp_path / "blended",
            blend=first / "model.safetensors",
            blend_share=0.25,
        ),
        base=base,
    )
    with pytest.raises(ValueError, match="go together"):
        config_for(tmp_path, blend=first / "model.safetensors")
    before, after, mixed = (load_file(str(run / "model.safetensors")) for run in (first, plain, blended))
    assert not torch.allclose(before["head.weight"], after["head.weight"])
    assert all(torch.allclose(mixed[name], 0.25 * before[name] + 0.75 * after[name], atol=1e-6) for name in mixed)


def test_weights_of_different_networks_are_not_averaged(tmp_path: Path) -> None:
    for name, width in (("a", 2), ("b", 3)):
        save_file({"head.weight": torch.zeros(width)}, str(tmp_path / name))
    with pytest.raises(ValueError, match="different networks"):
        average_weights([tmp_path / "a", tmp_path / "b"], tmp_path / "mean.safetensors")


def test_the_running_mean_by_hand() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    mean = AveragedWeights(0.5)
    for value in (0.0, 1.0, 3.0):
        torch.nn.init.constant_(model.weight, value)
        mean.update(model)
    mean.apply(model)
    assert model.weight.item() == pytest.approx(0.5 * (0.5 * 0.0 + 0.5 * 1.0) + 0.5 * 3.0)


def test_weights_without_categories_are_taken_over_and_foreign_ones_are_refused(base: Path, tmp_path: Path) -> None:
    old = HarmClassifier.from_base(base)
    save_weights(old, tmp_path / "old.safetensors")
    new = HarmClassifier.from_base(base, categories=3)
    new.load(tmp_path / "old.safetensors")
    assert torch.equal(new.head.weight, old.head.weight)
    save_weights(torch.nn.Linear(1, 1), tmp_path / "other.safetensors")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        new.load(tmp_path / "other.safetensors")


# Categories ------------------------------------------------------------------------------


def test_only_known_categories_are_learnt(base: Path) -> None:
    model = HarmClassifier.from_base(base, categories=3)
    batch = {
        "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3], [2, 5, 8, 3]]),
        "attention_mask": torch.ones(3, 4, dtype=torch.long),
        "token_type_ids": torch.zeros(3, 4, dtype=torch.long),
        "owner": torch.tensor([0, 1, 1]),
        "labels": torch.tensor([1.0, 0.0]),
    }
    model.eval()
    bare = model(**batch)
    unknown = model(**batch, categories=torch.tensor([NO_CATEGORY, NO_CATEGORY]))
    first = model(**batch, categories=torch.tensor([2, NO_CATEGORY]))
    assert bare["category_logits"].shape == (2, 3)
    assert unknown["loss"] == bare["loss"]
    expected = bare["loss"] + 0.2 * torch.nn.functional.cross_entropy(bare["category_logits"][:1], torch.tensor([2]))
    assert first["loss"].item() == pytest.approx(expected.item())
    # Windows count for the category as they count for the harm.
    logits, categories = model.window_outputs(
        *(batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    )
    weights = torch.softmax(logits[1:], dim=0)
    torch.testing.assert_close(bare["category_logits"][1], weights @ categories[1:])


# Small and odd ---------------------------------------------------------------------------


def test_a_file_of_one_class_is_refused(base: Path, tmp_path: Path) -> None:
    train = tmp_path / "one.jsonl"
    train.write_text("".join(f'{{"response": "the cat {number}", "harmful": false}}\n' for number in range(8)))
    with pytest.raises(ValueError, match=r"one\.jsonl: one class only"):
        train_detector(config_for(tmp_path, train=train), base=base)


def test_fewer_rows_than_a_batch_train_and_report_every_epoch(base: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "few.jsonl", count=6, seed=3)
    run = train_detector(config_for(tmp_path, train=train, held_out=0.0, epochs=3), base=base)
    assert [report["epoch"] for report in metrics(run)] == [1, 2, 3]


def labelled(number: int, length: int) -> LabelledExchange:
    return LabelledExchange(str(number), "s", f"q{number}", "a lamp", "river " * length, harmful=bool(number % 2))


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 8), st.integers())
def test_batches_hold_each_row_once_and_like_lengths(lengths: list[int], batch_size: int, seed: int) -> None:
    rows = [labelled(number, length) for number, length in enumerate(lengths)]
    ordered = bucketed(rows, batch_size, seed=seed)
    assert len(ordered) % batch_size == 0
    if len(rows) < batch_size:
        assert set(ordered) == set(rows)
        return
    whole = len(rows) - len(rows) % batch_size
    assert Counter(ordered) == Counter(rows[:whole])
    spans = []
    for start in range(0, whole, batch_size):
        in_batch = sorted(len(row.response) for row in ordered[start : start + batch_size])
        spans.append((in_batch[0], in_batch[-1]))
    # Sorted by length, the batches do not overlap: this holds for up to 50 batches, which is one block.
    spans.sort()
    assert all(left[1] <= right[0] for left, right in pairwise(spans)) or whole > 50 * batch_size
    assert ordered == bucketed(rows, batch_size, seed=seed)


def test_what_is_dropped_and_which_windows_are_taken_is_drawn_anew_but_repeatably(base: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, epochs=2, drop_question=0.5, max_windows=2)
    rows = [labelled(number, 60) for number in range(40)]
    encoder = PairEncoder(
        Tokenizer.from_file(str(base / "tokenizer.json")), max_tokens=24, question_tokens=6, overlap=4
    )
    first, second = (PlannedExchanges(rows, encoder, config) for _ in range(2))
    assert first.epoch_ends == [40, 80]
    items = [first[index] for index in range(len(first))]
    assert items == [second[index] for index in range(len(second))]
    assert {len(item["windows"]) for item in items} == {2}
    assert {item["windows"][0].start for item in items} == {0}, "the first window is always shown"
    assert len({item["windows"][1].start for item in items}) > 2
    question_lengths = Counter(item["windows"][0].question_length for item in items)
    assert 20 < question_lengths[2] < 60  # about half without a question: [CLS] [SEP]


def test_metrics_of_a_source_by_hand() -> None:
    rows = [labelled(number, 1) for number in range(4)]  # labels 0, 1, 0, 1
    [(source, entry)] = source_metrics(rows, np.array([-1.0, 0.0, 2.0, 3.0])).items()
    assert source == "s"
    assert entry == {"rows": 4, "harmful": 2, "auroc": 0.75, "false_positive_rate": 0.5, "true_positive_rate": 1.0}
    assert source_metrics(rows[::2], np.array([-1.0, 2.0])) == {
        "s": {"rows": 2, "harmful": 0, "false_positive_rate": 0.5}
    }
