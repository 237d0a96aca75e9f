"""``protector train`` on the command line: one rule for the recipe, a file of settings, flags that win."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_causal import exchanges, preferences, write_base, write_rows

from protector_guardrails.cli import main


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Path:
    rows = write_rows(tmp_path / "rows.jsonl", exchanges(40, seed=1))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"train: {rows}\nbase: {base}\noutput: {tmp_path / 'run'}\nlora_rank: 4\nlearning_rate: 1e-2\nepochs: 7\n"
        "held_out: 0.2\nmax_tokens: 64\nbf16: false\nthreads: 1\n"
    )
    return path


def test_options_win_over_the_file_and_the_form_is_told(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "1", "-o", str(tmp_path / "other"), "--objective", "bce", "--patience", "3"]
    assert main(["train", "detector", "--config", str(settings), *options]) == 0
    out = capsys.readouterr().out
    assert "40 records in the form own" in out and f"trained: {tmp_path / 'other'}" in out
    stored = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (stored["epochs"], stored["lora_rank"], stored["patience"], stored["learning_rate"]) == (1, 4, 3, 0.01)
    assert main(["train", "export", str(tmp_path / "other"), "--validation", str(settings), "-o", "x"]) == 2
    assert "TransformersDetector loads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--cap", "5"], "no setting 'cap' in this recipe; there are: train, "),
        (["--objective", "mse"], "objective: Input should be 'bce' or 'bce+ranking'"),
        (["--format", "nonsense"], "format: Input should be "),
        (["--columns", "accepted=a"], "columns must name the field of 'rejected'"),
        (["--base", "./nowhere"], "there is no folder ./nowhere"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(
    settings: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["train", "detector", "--config", str(settings), *options]) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.startswith("protector: ") and err.count("\n") == 1


def test_without_a_rank_the_embedded_recipe_is_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", exchanges(8, seed=1)))
    folder = ["--base", str(tmp_path), "-o", str(tmp_path / "run")]
    for arguments, complaint in (
        ([rows, "--objective", "bce", *folder], "no setting 'objective' in this recipe"),
        ([rows, "--base", "somebody/model"], "there is no folder somebody/model"),
        ([rows, "--lora-rank", "4"], "--lora-rank needs --base"),
        (["--lora-rank", "4", "--base", "x"], "name at least one file of labelled answers"),
    ):
        assert main(["train", "detector", *arguments]) == 2
        assert complaint in capsys.readouterr().err


def test_unknown_settings_in_the_file_are_named(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings.write_text(settings.read_text() + "lora_rnak: 3\n")
    assert main(["train", "detector", "--config", str(settings)]) == 2
    assert "run.yaml and the options: there is no setting 'lora_rnak'" in capsys.readouterr().err


def test_a_detoxifier_is_trained_from_a_public_form(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "pku.jsonl", preferences(40, seed=1))
    extra = tmp_path / "run.yaml"
    extra.write_text("min_words: 0\nsame_beginning: 1000\nheld_out: 0.2\njudged_targets: false\nbf16: false\n")
    options = ["--config", str(extra), "--template", "plain", "--threads", "1", "-o", str(tmp_path / "run")]
    assert main(["train", "detoxifier", str(rows), "--base", str(base), *options]) == 0
    assert "40 records in the form pku-saferlhf" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter" / "prompt_template.json").exists()
    assert main(["train", "detoxifier", str(rows)]) == 2
    assert "name a language model with --base" in capsys.readouterr().err
    assert main(["train", "detoxifier", "--base", str(base)]) == 2
    assert "name at least one file of pairs" in capsys.readouterr().err
    assert main(["train", "detoxifier", str(rows), "--base", str(base), "--template", "x", "-o", str(tmp_path)]) == 2
    assert "template: Input should be 'chatml' or 'plain'" in capsys.readouterr().err


def test_a_base_without_tokenizer_is_refused(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_base(tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    assert main(["train", "detector", "--config", str(settings), "--base", str(bare)]) == 2
    assert "bare has no tokenizer" in capsys.readouterr().err
