"""`protector check`, `protector models`, `protector train`, and what holds for every subcommand."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

import protector_guardrails
from protector_guardrails.cli import app, main
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.embedded import EmbeddedDetector
from protector_guardrails.errors import DetectorError
from protector_guardrails.types import Exchange, Verdict

COMMAND = [sys.executable, "-m", "protector_guardrails.cli"]


class Fake(HarmDetector):
    name = "fake@1"

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self.error: BaseException | None = None

    def detect(self, exchanges):
        if self.error:
            raise self.error
        self.seen.extend(exchanges)
        return [
            Verdict(
                harmful=False,
                score=0.75 if "BAD" in exchange.response else 0.25,
                categories={"hate": 0.1, "privacy": 0.7},
                spans=((0, 3), (7, 9)),
                detector=self.name,
            )
            for exchange in exchanges
        ]


@pytest.fixture
def fake(monkeypatch):
    detector = Fake()
    monkeypatch.setattr(EmbeddedDetector, "shared", staticmethod(lambda: detector))
    return detector


def with_standard_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_prints_the_verdict_and_never_the_text(fake, capsys):
    assert main(["check", "BAD secret", "-q", "what?", "-i", "a cat", "-i", "a dog"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "harmful  score 0.750  threshold 0.5  fake@1",
        "categories  privacy 0.700, hate 0.100",
        "span  0-3  ▇▇▇",
        "span  7-9  ▇▇▇",
    ]
    assert fake.seen[0].judged_question == "what?\n[image: a cat]\n[image: a dog]"


def test_what_is_harmful_for_no_known_reason_is_unspecified(fake, capsys, monkeypatch):
    verdict = Verdict(harmful=True, score=0.9, spans=tuple((n, n + 1) for n in range(25)), detector="fake@1")
    monkeypatch.setattr(fake, "detect", lambda exchanges: [verdict] * len(exchanges))
    assert main(["check", "one two three four five six seven eight nine ten eleven twelve"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "categories  unspecified"
    assert len(lines) == 2 + 20 + 1 and lines[-1] == "span  ... 5 more, the last one ends at 25"


def test_a_threshold_can_have_a_name(fake, capsys):
    fake.thresholds = {"fpr-1%": 0.75, "fpr-5%": 0.6}
    assert main(["check", "BAD", "--threshold", "fpr-1%"]) == 0
    assert capsys.readouterr().out.startswith("harmful  score 0.750  threshold 0.75")
    assert main(["check", "BAD", "--threshold", "fpr-2%"]) == 2
    assert capsys.readouterr().err == (
        "protector: --threshold: the detector fake@1 has no threshold 'fpr-2%': "
        "give one of 'fpr-1%', 'fpr-5%', or a number from 0 to 1\n"
    )


def test_threshold_decides(fake, capsys):
    assert main(["check", "BAD", "--threshold", "0.8", "--exit-code"]) == 0
    assert capsys.readouterr().out.startswith("safe  score 0.750  threshold 0.8")


@pytest.mark.parametrize(
    ("text", "options", "status"), [("BAD", [], 0), ("ok", ["--exit-code"], 0), ("BAD", ["--exit-code"], 1)]
)
def test_exit_status(fake, text, options, status):
    assert main(["check", text, *options]) == status


def test_json_is_the_whole_verdict(fake, capsys):
    assert main(["check", "BAD", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "harmful": True,
        "score": 0.75,
        "threshold": 0.5,
        "categories": {"hate": 0.1, "privacy": 0.7},
        "spans": [[0, 3], [7, 9]],
        "detector": "fake@1",
        "elapsed_ms": 0.0,
    }


def test_standard_input_may_hold_any_bytes(fake, monkeypatch, capsys):
    with_standard_input(monkeypatch, b"BAD caf\xe9 \xff\x00")
    assert main(["check", "-", "--json"]) == 0
    assert fake.seen[0].response == "BAD caf\udce9 \udcff\x00"
    assert json.loads(capsys.readouterr().out)["harmful"] is True


def test_the_real_detector_takes_any_bytes():
    done = subprocess.run(
        [*COMMAND, "check", "-", "--json"], input=b"caf\xe9 \xff\x00 \xf0\x9f", capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["detector"].startswith("embedded@")


def test_a_failing_detector_ends_in_one_line_without_the_text(fake, capsys):
    fake.error = RuntimeError("about a secret text")
    assert main(["check", "secret"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "protector: DetectorError: RuntimeError was raised\n"


@pytest.mark.parametrize("value", ["2", "-0.1", "nan", "inf", "much"])
def test_a_threshold_out_of_range_is_told(fake, capsys, value):
    assert main(["check", "x", f"--threshold={value}"]) == 2
    err = capsys.readouterr().err
    assert "--threshold" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command"),
        (["check"], "Missing argument"),
        (["check", "x", "--nonsense"], "No such option"),
        (["check", "x", "y"], "unexpected extra argument"),
        (["models", "nonsense"], "No such command"),
        (["train", "detector", "nothing.jsonl", "-o", "x"], "does not exist"),
        (["train", "detector", ".", "-o", "x"], "is a directory"),
        (["demo", "--data", "nothing.jsonl"], "does not exist"),
        (["demo", "--limit", "0"], "--limit"),
        (["demo", "--detoxifier", "magic"], "unknown detoxifier 'magic'"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(capsys, arguments, message):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message.lower() in err.lower()
    assert err.startswith("protector: ") and err.count("\n") == 1


def test_errors_of_the_package_and_the_system_end_in_one_line(fake, capsys, monkeypatch):
    for error, line in (
        (DetectorError("broken\nin two lines"), "protector: broken in two lines\n"),
        (OSError(28, "No space left on device", "out"), "protector: out: No space left on device\n"),
        (PermissionError(13, "Permission denied"), "protector: Permission denied\n"),
    ):

        def fail(error=error):
            raise error

        monkeypatch.setattr(EmbeddedDetector, "shared", staticmethod(fail))
        assert main(["check", "x"]) == 2
        assert capsys.readouterr().err == line


def test_an_interrupt_is_status_130(fake, capsys):
    fake.error = KeyboardInterrupt()
    assert main(["check", "x"]) == 130
    assert capsys.readouterr().err == "protector: interrupted\n"


def test_a_broken_pipe_is_silent():
    process = subprocess.Popen([*COMMAND, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == protector_guardrails.__version__


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["train"], *([name, "--help"] for name in ("check", "score", "demo", "models", "train"))],
)
def test_help(capsys, arguments):
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Usage: protector") and not captured.err


def test_every_command_and_option_says_what_it_is_for():
    import typer

    group = typer.main.get_command(app)
    commands = {"audit", "check", "data", "demo", "evaluate", "models", "score", "train", "tune-threshold"}
    assert set(group.commands) == commands
    for command in group.commands.values():
        assert command.help
        for sub in getattr(command, "commands", {}).values():
            assert sub.help


def test_models_lists_what_ships_verified(capsys):
    assert main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["detector"]
    assert told["name"] == "embedded" and told["verified"] is True
    assert "model.onnx" in told["sha256"] and told["bytes"] > 1_000_000
    assert main(["models"]) == 0
    out = capsys.readouterr().out.partition("\n\n")[0]  # the detoxifier and its base come below
    assert f"embedded@{told['version']}" in out and out.count("verified") == len(told["sha256"])


def test_models_tells_a_changed_file(capsys, monkeypatch, tmp_path):
    import shutil

    from protector_guardrails import models

    folder = tmp_path / "detector"
    shutil.copytree(models.EMBEDDED_DETECTOR, folder)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    monkeypatch.setattr(models, "EMBEDDED_DETECTOR", folder)
    assert main(["models"]) == 2
    assert "sha256" in capsys.readouterr().err


def test_models_card_prints_the_card(capsys):
    from protector_guardrails.models import embedded_detector_card

    assert main(["models", "card"]) == 0
    assert capsys.readouterr().out.strip() == embedded_detector_card().strip()


def test_check_is_light():
    """No framework is imported, and a cold start stays well below what a person notices."""
    code = (
        "import sys; from protector_guardrails.cli import main; status = main(['check', 'Stir the soup.']);"
        "bad = [m for m in ('torch', 'transformers', 'langchain_core', 'rich.progress') if m in sys.modules];"
        "sys.exit(f'{status} {bad}' if status or bad else 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, since other work on the machine is not our doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_training_without_its_extra_says_so_in_one_line(capsys, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find_spec(name, *a))
    data = tmp_path / "data.jsonl"
    data.write_text("")
    for arguments in (
        ["train", "detector", str(data), "-o", str(tmp_path / "run")],
        ["train", "export", str(tmp_path), "--validation", str(data), "-o", str(tmp_path / "run")],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.endswith("pip install 'protector-guardrails[train]'\n")


def test_training_passes_every_option_on(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    from protector_guardrails.training import seeds as training

    calls = []
    monkeypatch.setattr(
        training, "train_detector", lambda config, **rest: calls.append((config, rest)) or config.output
    )
    data, base = tmp_path / "data.jsonl", tmp_path / "base"
    data.write_text("")
    base.mkdir()
    options = [
        "--epochs",
        "2",
        "--batch-size",
        "4",
        "--learning-rate",
        "0.5",
        "--seed",
        "7",
        "--limit",
        "9",
        "--threads",
        "1",
        "--resume",
    ]
    files = ["--validation", str(data), "--validation", str(data), "--base", str(base), "-o", str(tmp_path / "run")]
    assert main(["train", "detector", str(data), *files, *options]) == 0
    [(config, rest)] = calls
    assert rest == {"base": base, "resume": True}
    assert (config.train, config.validation, config.output) == ((data,), (data, data), tmp_path / "run")
    assert (config.epochs, config.batch_size, config.learning_rate) == (2, 4, 0.5)
    assert (config.seed, config.limit, config.threads) == (7, 9, 1)
    assert main(["train", "detector", str(data), *files, "--learning-rate", "0"]) == 2
    assert "learning_rate: Input should be greater than 0" in capsys.readouterr().err


def test_training_on_unusable_data_ends_in_one_line(tmp_path, capsys):
    pytest.importorskip("torch")
    data, base = tmp_path / "data.jsonl", tmp_path / "base"
    base.mkdir()
    data.write_text(json.dumps({"id": "1", "source": "s", "question": "q", "response": "r", "harmful": False}) + "\n")
    assert main(["train", "detector", str(data), "--base", str(base), "-o", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "one class only" in err and err.count("\n") == 1
    whole = gzip.compress(data.read_bytes())
    for content in (whole[:-9], b"no gzip", whole[:12] + b"\xff" * 9 + whole[21:], gzip.compress(b"nonsense\n")):
        damaged = tmp_path / "damaged.jsonl.gz"
        damaged.write_bytes(content)
        assert main(["train", "detector", str(damaged), "--base", str(base), "-o", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert len(err) > 30 and err.count("\n") == 1


def test_export_passes_everything_on(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    from protector_guardrails.training import export as exporting

    calls = []
    monkeypatch.setattr(exporting, "export_detector", lambda run, **rest: calls.append((run, rest)) or rest["output"])
    data, base, run = tmp_path / "data.jsonl", tmp_path / "base", tmp_path / "run"
    data.write_text("")
    base.mkdir()
    run.mkdir()
    arguments = ["train", "export", str(run), "--base", str(base), "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--validation is needed" in capsys.readouterr().err
    for options, normalise in (([], False), (["--normalise"], True)):
        calls.clear()
        assert main([*arguments, "--validation", str(data), *options]) == 0
        fields = {"validation": [data], "output": tmp_path / "out", "base": base, "normalise": normalise}
        assert calls == [(run, fields)]
