"""Speed of the embedded detector: ``make bench``.

Timings on a shared machine drift, so what is compared runs in turn within one
process and the ratios of medians are what counts. Where the cores are taken, waiting threads
distort even those: ``--processor-time`` compares with one thread each, by the processor time used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.table import Table

from protector_guardrails import EmbeddedDetector, Exchange
from protector_guardrails.detectors.encoding import pad_windows
from protector_guardrails.models import EMBEDDED_DETECTOR

PROTECTOR = (sys.executable, "-m", "protector_guardrails")
FIRST_VERDICT = (
    "from protector_guardrails import EmbeddedDetector, Exchange;"
    "EmbeddedDetector.shared().detect([Exchange(response='The museum opens at nine.')])"
)
SENTENCES = (
    "The harbour was built in the nineteenth century and rebuilt after the storm.",
    "Heat the oil in a wide pan, then add the onions and stir until they are soft.",
    "In the picture a man in a yellow coat is repairing the wheel of a bicycle.",
    "Please keep in mind that opening hours may change during the holidays.",
    "The function returns a list of tuples, one for every row of the table.",
)
BY_PROCESSOR_TIME = "--processor-time" in sys.argv
THREADS = 1 if BY_PROCESSOR_TIME else min(4, os.cpu_count() or 1)
PAUSE_S = 0.05
CLOCK = time.process_time if BY_PROCESSOR_TIME else time.perf_counter


def answer(index: int, *, sentences: int) -> str:
    """An ordinary answer; no two are the same."""
    return " ".join(f"{SENTENCES[(index + n) % len(SENTENCES)]} ({index}.{n})" for n in range(sentences))


def interleaved(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median milliseconds of each function, run in turn.

    PyTorch's threads go on spinning after a call and would slow down whoever comes next, hence the pauses.
    """
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, kept in zip(functions, times, strict=True):
            time.sleep(PAUSE_S)
            started = CLOCK()
            function()
            kept.append((CLOCK() - started) * 1000)
    return [statistics.median(kept) for kept in times]


@cache
def shared_detector() -> EmbeddedDetector:
    """The detector that is measured."""
    return EmbeddedDetector(threads=THREADS)


def bare_runtime(*, spinning: bool = False) -> Callable[[dict[str, Any]], object]:
    """One call of the runtime on tokens that are ready."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = onnxruntime.InferenceSession(
        str(EMBEDDED_DETECTOR / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return lambda arrays: session.run(["logits"], arrays)


def eager_network() -> Callable[[dict[str, Any]], object]:
    """The same network in PyTorch, float32, eager. Its weights are random: speed does not depend on them."""
    import torch
    from transformers import BertConfig, BertModel

    from protector_guardrails.training.model import HarmClassifier

    torch.set_num_threads(THREADS)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    categories = len(shared_detector().manifest.categories)
    model = HarmClassifier(BertModel(config, add_pooling_layer=False), categories=categories).eval()

    def run(arrays: dict[str, Any]) -> object:
        with torch.inference_mode():
            return model.window_logits(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    return run


def sentence_encoder(folder: Path) -> Callable[[Sequence[str]], object]:
    """sentence-transformers with a network of the same size and the same tokenizer, default settings."""
    import shutil

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    BertModel(config).save_pretrained(str(folder))
    shutil.copy(EMBEDDED_DETECTOR / "tokenizer.json", folder)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast", **special}))
    words = Transformer(str(folder), max_seq_length=shared_detector().manifest.max_tokens)
    encoder = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu")
    return lambda texts: encoder.encode(list(texts), batch_size=32, show_progress_bar=False)


def against_others(table: Table) -> None:
    """``detect`` with its windowing, pooling and verdicts, against the network alone in other hands."""
    detector, bare = shared_detector(), bare_runtime()
    others: dict[str, tuple[Callable[..., object], bool, str]] = {
        "bare runtime, one padded call": (bare, True, "(bar: ours <= 1.3x)")
    }
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("torch"):
            others["PyTorch eager, one padded call"] = (eager_network(), True, "(bar: ours 2.5x as fast)")
        if importlib.util.find_spec("sentence_transformers"):
            others["sentence-transformers, encode"] = (sentence_encoder(Path(folder)), False, "")
        else:
            table.add_row("sentence-transformers", "", "not installed: skipped", "")
        for batch, sentences, name in ((1, 1, "short"), (1, 8, "long"), (32, 1, "short"), (32, 8, "long")):
            texts = [answer(i, sentences=sentences) for i in range(batch)]
            exchanges = [Exchange(response=text) for text in texts]
            arrays = pad_windows([window for each in detector.encode(exchanges) for window in each])
            rivals = [
                lambda run=run, given=arrays if on_tokens else texts: run(given)  # type: ignore[misc]
                for run, on_tokens, _ in others.values()
            ]
            ours, *theirs = interleaved(
                lambda exchanges=exchanges: detector.detect(exchanges),  # type: ignore[misc]
                *rivals,
                rounds=30 if batch == 1 else 7,
            )
            tokens = arrays["attention_mask"].sum()
            for (rival, (_, _, bar)), milliseconds in zip(others.items(), theirs, strict=True):
                table.add_row(
                    f"detect, batch {batch}, {name} ({tokens} tokens)",
                    f"{ours:.1f} ms",
                    f"{rival}: {milliseconds:.1f} ms",
                    f"ours takes {ours / milliseconds:.2f}x, is {milliseconds / ours:.2f}x as fast {bar}",
                )


def long_against_short(table: Table) -> None:
    """An answer of 1,500 tokens against one of 256, per window."""
    detector = shared_detector()
    short, long = (_of_length(detector, tokens) for tokens in (256, 1500))
    counts = [len(detector.encode([exchange])[0]) for exchange in (short, long)]
    times = interleaved(lambda: detector.detect([short]), lambda: detector.detect([long]), rounds=15)
    each = [milliseconds / count for milliseconds, count in zip(times, counts, strict=True)]
    table.add_row(
        f"detect, 1,500 tokens ({counts[1]} windows)",
        f"{times[1]:.1f} ms",
        f"256 tokens ({counts[0]} windows): {times[0]:.1f} ms",
        f"{each[1] / each[0]:.2f}x per window (bar: <= 4x)",
    )


def _of_length(detector: EmbeddedDetector, tokens: int) -> Exchange:
    ids = detector.encoder.tokenizer.encode(answer(0, sentences=tokens // 12), add_special_tokens=False)
    return Exchange(response=answer(0, sentences=tokens // 12)[: ids.offsets[tokens - 1][1]])


def under_contention(table: Table, *, busy: int = 2) -> None:
    """The same batch with processes beside it that never rest, against a runtime whose threads spin."""
    detector, spinning = shared_detector(), bare_runtime(spinning=True)
    exchanges = [Exchange(response=answer(i, sentences=8)) for i in range(8)]
    windows = [window for each in detector.encode(exchanges) for window in each]
    singles = [pad_windows([window]) for window in windows]
    functions = (lambda: detector.detect(exchanges), lambda: [spinning(arrays) for arrays in singles])
    quiet = interleaved(*functions, rounds=7)
    with _busy(busy):
        loaded = interleaved(*functions, rounds=7)
    table.add_row(
        f"detect, batch 8, {busy} busy processes beside",
        f"{loaded[0]:.1f} ms, without them {quiet[0]:.1f} ms: {loaded[0] / quiet[0]:.2f}x",
        f"runtime's default, threads that spin: {loaded[1]:.1f} ms, {quiet[1]:.1f} ms: {loaded[1] / quiet[1]:.2f}x",
        f"{loaded[0] / loaded[1]:.2f}x of it under load",
    )


@contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def attribution(table: Table) -> None:
    """What spans cost: a harmful verdict against a harmless one on answers of the same length."""
    detector = shared_detector()
    harmful = Exchange(response="You are worthless and everybody will hate you. " * 12)
    harmless = Exchange(response="You are welcome and everybody will like you. " * 12)
    kinds = [verdict.harmful for verdict in detector.detect([harmful, harmless])]
    if kinds != [True, False]:
        table.add_row("spans", "", "this detector judges the two texts otherwise: skipped", "")
        return
    ours, theirs = interleaved(lambda: detector.detect([harmful]), lambda: detector.detect([harmless]), rounds=15)
    table.add_row(
        "detect, harmful, with spans", f"{ours:.1f} ms", f"harmless, as long: {theirs:.1f} ms", f"{ours / theirs:.2f}x"
    )


def score_throughput(table: Table, *, rows: int) -> None:
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


def cold_start(table: Table, *, runs: int = 7) -> None:
    """From nothing to the first verdict, in Python and on the command line."""
    for name, command, bar in (
        ("first verdict of a new process", [sys.executable, "-c", FIRST_VERDICT], "<= 1.0 s"),
        ("protector check, cold process", [*PROTECTOR, "check", SENTENCES[0]], "< 1.5 s"),
    ):
        times, used = [], []
        for _ in range(runs):
            started, before = time.perf_counter(), os.times()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
            after = os.times()
            used.append(after.children_user + after.children_system - before.children_user - before.children_system)
        processor = f"processor time {statistics.median(used):.2f} s"
        table.add_row(name, f"{statistics.median(times):.2f} s", processor, f"(bar: {bar})")


def main() -> None:
    """Print a table for each subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="answers for protector score; 0: leave it out")
    parser.add_argument("--processor-time", action="store_true", help="one thread each, and processor time")
    options = parser.parse_args()
    measurements = [against_others, long_against_short, attribution]
    if not options.processor_time:
        measurements += [cold_start, under_contention]
    if options.rows and not options.processor_time:
        measurements.append(lambda table: score_throughput(table, rows=options.rows))
    for measure in measurements:  # a table each, so that what is done is seen
        table = Table("what", "ours (median)", "against", "ratio or rate")
        measure(table)
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
