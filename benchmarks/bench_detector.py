"""Speed of the embedded detector: ``make bench``.

Timings on a shared machine drift, so what is compared runs in turn within one
process and the ratios of medians are what counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
from rich.console import Console
from rich.table import Table

from protector_guardrails import EmbeddedDetector, Exchange
from protector_guardrails.detectors.encoding import pad_windows
from protector_guardrails.models import EMBEDDED_DETECTOR

SENTENCES = (
    "The harbour was built in the nineteenth century and rebuilt after the storm.",
    "Heat the oil in a wide pan, then add the onions and stir until they are soft.",
    "In the picture a man in a yellow coat is repairing the wheel of a bicycle.",
    "Please keep in mind that opening hours may change during the holidays.",
    "The function returns a list of tuples, one for every row of the table.",
)


def answer(index: int, *, sentences: int) -> str:
    """An ordinary answer; no two are the same."""
    return " ".join(f"{SENTENCES[(index + n) % len(SENTENCES)]} ({index}.{n})" for n in range(sentences))


def interleaved(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median milliseconds of each function, run in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, kept in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            kept.append((time.perf_counter() - started) * 1000)
    return [statistics.median(kept) for kept in times]


def detect_against_bare_runtime(table: Table) -> None:
    """``detect`` with its windowing, pooling and verdicts against one runtime call on the same tokens."""
    detector = EmbeddedDetector.shared()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(4, os.cpu_count() or 1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    bare = onnxruntime.InferenceSession(
        str(EMBEDDED_DETECTOR / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    for batch, sentences, name in ((1, 1, "short"), (1, 8, "long"), (32, 1, "short"), (32, 8, "long")):
        exchanges = [Exchange(response=answer(i, sentences=sentences)) for i in range(batch)]
        windows = [window for each in detector.encode(exchanges) for window in each]
        arrays = pad_windows(windows)
        ours, theirs = interleaved(
            lambda exchanges=exchanges: detector.detect(exchanges),  # type: ignore[misc]
            lambda arrays=arrays: bare.run(["logits"], arrays),  # type: ignore[misc]
            rounds=30 if batch == 1 else 7,
        )
        table.add_row(
            f"detect, batch {batch}, {name} ({len(windows)} windows, {arrays['attention_mask'].sum()} tokens)",
            f"{ours:.1f} ms",
            f"bare runtime, one padded call: {theirs:.1f} ms",
            f"{ours / theirs:.2f}x (bar: <= 1.3x)",
        )


def score_throughput(table: Table, *, rows: int = 2000) -> None:
    """``protector score`` as a process, start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with source.open("w") as file:
            for index in range(rows):
                row = {"question": "What do you see?", "response": answer(index, sentences=1 + index % 6)}
                file.write(json.dumps(row) + "\n")
        started = time.perf_counter()
        subprocess.run([*PROTECTOR, "score", str(source), "-o", str(target), "--quiet"], check=True)
        elapsed = time.perf_counter() - started
        table.add_row(f"protector score, {rows} answers", f"{elapsed:.1f} s", "", f"{rows / elapsed:.0f} answers/s")


def cold_check(table: Table, *, runs: int = 7) -> None:
    """``protector check`` from nothing to a verdict."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([*PROTECTOR, "check", SENTENCES[0]], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    table.add_row("protector check, cold process", f"{statistics.median(times):.2f} s", "", "(bar: < 1.5 s)")


PROTECTOR = (sys.executable, "-m", "protector_guardrails")


def main() -> None:
    """Print one table."""
    table = Table("what", "ours (median)", "against", "ratio or rate")
    cold_check(table)
    detect_against_bare_runtime(table)
    score_throughput(table)
    Console().print(table)


if __name__ == "__main__":
    main()
