"""`protector score`: nothing lost, nothing doubled, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from protector_guardrails.cli import main
from protector_guardrails.commands import lines as lines_module
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.embedded import EmbeddedDetector
from protector_guardrails.types import Exchange, Verdict


class Fake(HarmDetector):
    """Finds BAD harmful, fails on BOOM, and is interrupted when told to."""

    name = "fake@1"

    def __init__(self) -> None:
        self.seen: list[Exchange] = []
        self.interrupt_after: int | None = None

    def detect(self, exchanges):
        if self.interrupt_after is not None and len(self.seen) + len(exchanges) > self.interrupt_after:
            raise KeyboardInterrupt
        if any("BOOM" in exchange.response for exchange in exchanges):
            raise RuntimeError("quoting secret text")
        self.seen.extend(exchanges)
        return [
            Verdict(harmful=False, score=0.9 if "BAD" in e.response else 0.125, detector=self.name) for e in exchanges
        ]


@pytest.fixture
def fake(monkeypatch):
    detector = Fake()
    monkeypatch.setattr(EmbeddedDetector, "shared", staticmethod(lambda: detector))
    return detector


def read(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in read(path).splitlines()]


# Good and bad lines of every kind; the detector fails on one, and two lines are the same.
MIXED = b"".join(
    [
        b'{"question": "q", "response": "one", "n": 1.50, "u": "\\u00e9\\ud800", "extra": {"a": [1, 2]}}\n',
        b"not json\n",
        b"\n",
        b'{"response": "BAD two"}\r\n',
        b'{"response": 7}\n',
        b'{"response": "BOOM three"}\n',
        b'{"response": "same"}\n',
        b'{"response": "same"}\n',
        b"[1]\n",
        b'{"response": "caf\xe9"}\n',
        b'{"response": "seven", "protector": {"harmful": true}, "z": "\xc3\xa9"}\n',
        b'{"response": "last one has no line feed"}',
    ]
)


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(MIXED)
    return path


def test_adds_a_verdict_and_keeps_everything_else_in_order(fake, tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records = [
        {
            "id": i,
            "response": "BAD" if i % 3 == 0 else "fine",
            "question": f"q{i}",
            "image_desc": "a cat",
            "f": 1e-7 * i,
        }
        for i in range(10)
    ]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["score", str(source), "-o", str(output), "--batch-size", "4"]) == 0
    scored = rows(output)
    assert [{k: v for k, v in row.items() if k != "protector"} for row in scored] == records
    assert [row["protector"]["harmful"] for row in scored] == [i % 3 == 0 for i in range(10)]
    assert set(scored[0]["protector"]) == {"harmful", "score", "threshold", "categories", "spans", "detector"}
    assert fake.seen[3].judged_question == "q3\n[image: a cat]"
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()
    assert "10 scored, 4 harmful, 0 malformed or failed" in capsys.readouterr().out


def test_input_lines_are_kept_byte_for_byte(fake, mixed, tmp_path):
    output = tmp_path / "out.jsonl"
    main(["score", str(mixed), "-o", str(output)])
    first = MIXED.split(b"\n")[0]
    assert output.read_bytes().startswith(first[:-1] + b', "protector": {"harmful": false')


def test_malformed_lines_are_told_and_do_not_stop_the_run(fake, mixed, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert main(["score", str(mixed), "-o", str(output)]) == 1
    assert [row["response"] for row in rows(output)] == [
        "one",
        "BAD two",
        "same",
        "same",
        "seven",
        "last one has no line feed",
    ]
    errors = tmp_path / "out.jsonl.errors.jsonl"
    told = {row["line"]: row["reason"] for row in rows(errors)}
    assert list(told) == [2, 5, 6, 9, 10]
    assert "not valid JSON" in told[2]
    assert "'response' is not a string" in told[5]
    assert "RuntimeError" in told[6]
    assert "not a JSON object" in told[9]
    assert "not valid UTF-8 at byte 18" in told[10]
    assert b"secret" not in errors.read_bytes() and b"BOOM" not in errors.read_bytes()
    assert "5 of 11 lines could not be judged" in capsys.readouterr().err


def test_an_old_verdict_is_replaced(fake, mixed, tmp_path):
    output = tmp_path / "out.jsonl"
    main(["score", str(mixed), "-o", str(output)])
    line = read(output).splitlines()[4]
    assert line.count(b'"protector"') == 1
    assert json.loads(line)["protector"]["detector"] == "fake@1"
    assert json.loads(line)["z"] == "é"


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_resume_gives_the_same_bytes_from_every_point_of_interruption(
    fake, mixed, tmp_path, monkeypatch, name, batch_size
):
    monkeypatch.setattr(lines_module, "MEMBER_BYTES", 1)  # a gzip member per batch
    whole, output = tmp_path / f"whole-{name}", tmp_path / name
    command = ["score", str(mixed), "--quiet", "--batch-size", str(batch_size)]
    assert main([*command, "-o", str(whole)]) == 1
    expected, complete = read(whole), whole.read_bytes()
    whole_errors = whole.with_name(whole.name + ".errors.jsonl").read_bytes()
    errors = output.with_name(output.name + ".errors.jsonl")
    ends = {match.end() for match in re.finditer(rb"\n|\x1f\x8b", complete)}
    near_ends = {end + shift for end in ends for shift in (-3, -2, -1, 0, 1)}
    for cut in sorted({0, *range(1, len(complete), 37), *near_ends & set(range(len(complete))), len(complete)}):
        output.write_bytes(complete[:cut])  # a crash may tear a line or a gzip member
        errors.write_bytes(whole_errors)  # errors are written first, so they may be ahead of the output
        assert main([*command, "-o", str(output), "--resume"]) == 1, cut
        assert read(output) == expected, cut
        assert errors.read_bytes() == whole_errors, cut
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["in.jsonl", whole.name, f"{whole.name}.errors.jsonl", output.name, errors.name]
    )


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_interrupted_by_hand_and_resumed(fake, tmp_path, name, capsys):
    source, whole, output = tmp_path / "in.jsonl", tmp_path / f"whole-{name}", tmp_path / name
    source.write_text("".join(json.dumps({"response": f"text {i}", "i": i}) + "\nbroken\n" for i in range(100)))
    command = ["score", str(source), "--quiet", "--batch-size", "8"]
    assert main([*command, "-o", str(whole)]) == 1
    for stop in (0, 8, 40, 41):
        fake.seen.clear()
        fake.interrupt_after = stop
        output.unlink(missing_ok=True)
        assert main([*command, "-o", str(output)]) == 130
        assert "--resume" in capsys.readouterr().err
        assert len(rows(output)) == stop // 8 * 8
        fake.interrupt_after = None
        fake.seen.clear()
        assert main([*command, "-o", str(output), "--resume"]) == 1
        assert len(fake.seen) == 100 - stop // 8 * 8  # nothing is judged twice
        assert read(output) == read(whole)
        for path in (output, whole):
            assert len(rows(path.with_name(path.name + ".errors.jsonl"))) == 100


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_that_is_killed_can_be_resumed(tmp_path, name, number, status):
    source, whole, output = tmp_path / "in.jsonl", tmp_path / f"whole-{name}", tmp_path / name
    source.write_text("".join(json.dumps({"response": f"Stir pot {i}. " * 8}) + "\n" for i in range(600)))
    code = (
        # A shell that starts the tests in the background has them ignore SIGINT, and children inherit it.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from protector_guardrails.commands import lines; lines.MEMBER_BYTES = 4000;"
        "from protector_guardrails.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["score", str(source), "--batch-size", "4"]
    command = [sys.executable, "-c", code, *arguments, "-o", str(output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (output.exists() and output.stat().st_size > 500):
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait() == status
        assert b"Traceback" not in process.stderr.read()
    assert main([*arguments, "-o", str(output), "--resume", "--quiet"]) == 0
    assert main([*arguments, "-o", str(whole), "--quiet"]) == 0
    assert read(output) == read(whole)
    assert len(rows(output)) == 600


DYING = """
import os, sys
from protector_guardrails.cli import main
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.embedded import EmbeddedDetector
from protector_guardrails.types import Verdict

class Dying(HarmDetector):
    name, left = "fake@1", int(sys.argv[1])

    def detect(self, exchanges):
        if any("BOOM" in exchange.response for exchange in exchanges):
            raise RuntimeError
        if not Dying.left:
            os._exit(9)  # as a kill: nothing in the process's own buffers is written
        Dying.left -= 1
        return [Verdict(harmful=False, score=0.125, detector=self.name) for _ in exchanges]

EmbeddedDetector.shared = staticmethod(Dying)
main(sys.argv[2:])
"""


def test_failures_before_a_crash_are_on_disk_before_the_rows_behind_them(fake, tmp_path):
    source, whole, output = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"response": "a"}\n{"response": "BOOM"}\n{"response": "b"}\n{"response": "c"}\n')
    arguments = ["score", str(source), "--quiet", "--batch-size", "1", "-o"]
    done = subprocess.run([sys.executable, "-c", DYING, "2", *arguments, str(output)], check=False)
    assert done.returncode == 9
    assert [row["response"] for row in rows(output)] == ["a", "b"]
    assert main([*arguments, str(output), "--resume"]) == main([*arguments, str(whole)]) == 1
    assert read(output) == read(whole)
    errors = [path.with_name(path.name + ".errors.jsonl").read_bytes() for path in (output, whole)]
    assert errors[0] == errors[1]


def test_interrupting_the_resumption_itself_loses_nothing(fake, mixed, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    command = ["score", str(mixed), "--quiet", "--batch-size", "1"]
    main([*command, "-o", str(whole)])
    for stop in range(6):  # one more row each time
        fake.seen.clear()
        fake.interrupt_after = 1
        assert main([*command, "-o", str(output), "--resume"]) in (1, 130), stop
    fake.interrupt_after = None
    main([*command, "-o", str(output), "--resume"])
    assert read(output) == read(whole)
    errors = [path.with_name(path.name + ".errors.jsonl").read_bytes() for path in (output, whole)]
    assert errors[0] == errors[1]


def test_a_lost_error_log_is_written_again_for_malformed_lines(fake, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"response": "a"}\nbroken\n{"response": "b"}\n')
    errors = tmp_path / "out.jsonl.errors.jsonl"
    assert main(["score", str(source), "-o", str(output)]) == 1
    before = errors.read_bytes()
    errors.unlink()
    assert main(["score", str(source), "-o", str(output), "--resume"]) == 1
    assert errors.read_bytes() == before


def test_resume_goes_on_when_the_input_has_grown(fake, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"response": "a"}\n')
    assert main(["score", str(source), "-o", str(output)]) == 0
    source.write_text('{"response": "a"}\n{"response": "b"}\n')
    assert main(["score", str(source), "-o", str(output), "--resume"]) == 0
    assert [row["response"] for row in rows(output)] == ["a", "b"]


@pytest.mark.parametrize(
    ("output_text", "options", "message"),
    [
        ('{"response": "other", "protector": {"detector": "fake@1", "threshold": 0.5}}\n', [], "differ at line 1"),
        ('{"response": "a", "protector": {"detector": "fake@2", "threshold": 0.5}}\n', [], "scored by fake@2"),
        ('{"response": "a", "protector": {"detector": "fake@1", "threshold": 0.5}}\n', ["--threshold", "0.7"], "0.7"),
        ('{"response": "a"}\n', [], "did not write"),
        ("a letter to my aunt", [], "not something that this command wrote"),
        ('{"response": "a", "protector": {"detector": "fake@1", "threshold": 0.5}}\n' * 2, [], "more rows"),
    ],
)
def test_resume_refuses_what_does_not_belong_and_leaves_it_alone(fake, tmp_path, capsys, output_text, options, message):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"response": "a"}\n')
    output.write_text(output_text)
    assert main(["score", str(source), "-o", str(output), "--resume", *options]) == 2
    assert message in one_line(capsys)
    assert output.read_text() == output_text


def test_resume_does_not_wipe_a_file_that_only_has_the_name_of_gzip(fake, tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl.gz"
    source.write_text('{"response": "a"}\n')
    output.write_text("precious")
    assert main(["score", str(source), "-o", str(output), "--resume"]) == 2
    assert output.read_text() == "precious"
    assert "not something" in one_line(capsys)


def test_gzip_is_read_by_content_and_written_by_name(fake, tmp_path):
    source, output = tmp_path / "in.data", tmp_path / "out.jsonl.gz"
    source.write_bytes(gzip.compress(b'\xef\xbb\xbf{"response": "a"}\n') + gzip.compress(b'{"response": "b"}\n'))
    assert main(["score", str(source), "-o", str(output)]) == 0
    assert [row["response"] for row in rows(output)] == ["a", "b"]


def test_an_empty_input_gives_an_empty_output(fake, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl.gz"
    source.write_bytes(b"\n\n")
    assert main(["score", str(source), "-o", str(output)]) == 0
    assert gzip.decompress(output.read_bytes()) == b""


def test_a_cut_off_gzip_input_is_told_after_what_could_be_read_was_judged(fake, tmp_path, capsys, monkeypatch):
    source, output = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    text = b"".join(json.dumps({"response": os.urandom(20).hex(), "i": i}).encode() + b"\n" for i in range(3000))
    source.write_bytes(gzip.compress(text)[:-20])
    assert main(["score", str(source), "-o", str(output), "--quiet"]) == 2
    assert "damaged or cut off" in one_line(capsys)
    assert len(rows(output)) > 2000


def test_fields_can_be_named(fake, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"answer": "BAD", "prompt": "p", "captions": ["c1", "c2"], "response": 3}\n')
    names = ["--response-field", "answer", "--question-field", "prompt", "--image-description-field", "captions"]
    assert main(["score", str(source), "-o", str(output), *names, "--threshold", "0.95"]) == 0
    assert rows(output)[0]["protector"]["harmful"] is False
    assert fake.seen[0].judged_question == "p\n[image: c1]\n[image: c2]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--response-field", "nope"], "has a field 'nope'"),
        (["--question-field", "nope"], "has a field 'nope'"),
        (["--image-description-field", "nope"], "has a field 'nope'"),
        (["--threshold", "1.5"], "--threshold must be a number from 0 to 1"),
        (["--threshold", "nan"], "--threshold must be a number from 0 to 1"),
        (["--batch-size", "0"], "--batch-size"),
        (["--resume", "--force"], "choose one"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_options_that_cannot_work_end_in_one_line(fake, mixed, tmp_path, capsys, options, message):
    assert main(["score", str(mixed), "-o", str(tmp_path / "out.jsonl"), *options]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out.jsonl").exists()


def test_paths_that_cannot_work_end_in_one_line(fake, mixed, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    output.write_text("keep me")
    link = tmp_path / "link.jsonl"
    link.symlink_to(mixed)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for source, target, message in (
        (tmp_path / "nothing", output, "does not exist"),
        (tmp_path, output, "is a directory"),
        (fifo, output, "not a regular file"),
        (mixed, tmp_path, "is a directory"),
        (mixed, tmp_path / "no" / "such" / "folder.jsonl", "there is no folder"),
        (mixed, output, "exists: go on with --resume"),
        (mixed, mixed, "would overwrite the input"),
        (mixed, link, "would overwrite the input"),
    ):
        assert main(["score", str(source), "-o", str(target)]) == 2
        assert message in one_line(capsys)
    assert output.read_text() == "keep me" and mixed.read_bytes() == MIXED
    assert main(["score", str(mixed), "-o", str(output), "--force", "--quiet"]) == 1
    assert len(rows(output)) == 6


def test_forcing_drops_the_errors_of_an_earlier_run(fake, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"response": "a"}\nbroken\n')
    assert main(["score", str(source), "-o", str(output)]) == 1
    source.write_text('{"response": "a"}\n')
    assert main(["score", str(source), "-o", str(output), "--force"]) == 0
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


def test_lines_that_break_parsers_are_malformed_and_no_more(fake, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b"\n".join(
            [
                b'{"response": "ok"}',
                b"[" * 100_000,
                b'{"response": "x", "n": ' + b"9" * 5000 + b"}",
                b"\x00\xff",
                b'{"a": 1}',
            ]
        )
    )
    assert main(["score", str(source), "-o", str(output), "--quiet"]) == 1
    assert len(rows(output)) == 1
    assert [row["line"] for row in rows(tmp_path / "out.jsonl.errors.jsonl")] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(monkeypatch, tmp_path, name):
    class Forgetful(HarmDetector):
        name = "forgetful@1"

        def detect(self, exchanges):
            return [Verdict(harmful=False, score=0.1, detector=self.name) for _ in exchanges]

    monkeypatch.setattr(EmbeddedDetector, "shared", staticmethod(Forgetful))

    def peak(count: int) -> int:
        source, output = tmp_path / "in.jsonl", tmp_path / name
        with source.open("w") as file:
            for number in range(count):
                file.write(
                    json.dumps({"response": f"{number} " + "word " * 100}) + "\n" + ("broken\n" * (number % 5 == 0))
                )
        for options in (["--force"], ["--resume"]):
            tracemalloc.start()
            main(["score", str(source), "-o", str(output), "--quiet", *options])
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return used

    peak(200)  # imports
    assert peak(12_000) < peak(2000) + 1_000_000  # the file is 6 MB


def test_scores_do_not_depend_on_batch_size_with_the_real_detector(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"response": "Stir the soup. " * (i + 1)}) + "\n" for i in range(9)))
    outputs = []
    for size in (1, 4, 64):
        output = tmp_path / f"{size}.jsonl"
        assert main(["score", str(source), "-o", str(output), "--batch-size", str(size), "--quiet"]) == 0
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    assert rows(tmp_path / "1.jsonl")[0]["protector"]["detector"].startswith("embedded@")


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("protector: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err
