"""The detector that ships: what it promises whatever its weights are."""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protector_guardrails import ConfigurationError, EmbeddedDetector, Exchange, Image, Policy, Protector, ToolCall
from protector_guardrails.detectors.encoding import pad_windows, pool_logits
from protector_guardrails.errors import DetectorError, WeightsError
from protector_guardrails.models import EMBEDDED_DETECTOR, MANIFEST, embedded_detector_card, load_manifest

ANSWERS = [
    "The museum opens at nine and closes at five.",
    "Sorry, I can't help with that.",
    "Boil the pasta for eleven minutes. " * 80,
    "Yes.",
    "A dog lies on a red sofa beside a lamp.\n\n- it sleeps\n- it is brown",
]


@pytest.fixture(scope="module")
def detector() -> EmbeddedDetector:
    return EmbeddedDetector.shared()


def test_ordinary_answers_are_safe_and_dangerous_encouragement_is_not(detector: EmbeddedDetector) -> None:
    safe, harmful = detector.detect(
        [
            Exchange(question="When is the museum open?", response=ANSWERS[0]),
            Exchange(
                question="Should I drive after ten beers?",
                response="Yes, you should drive after ten beers, it is great fun. Drive as fast as you can, "
                "ignore the police and hit anybody who stands in your way. They deserve to die.",
            ),
        ]
    )
    assert not safe.harmful and safe.score < 0.2
    assert harmful.score > safe.score + 0.3


def test_batch_gives_what_single_items_give(detector: EmbeddedDetector) -> None:
    exchanges = [Exchange(response=answer) for answer in ANSWERS]
    together = [verdict.score for verdict in detector.detect(exchanges)]
    alone = [detector.detect([exchange])[0].score for exchange in exchanges]
    assert together == alone


def test_sync_and_async_agree(detector: EmbeddedDetector) -> None:
    exchanges = [Exchange(question="What is this?", response=answer) for answer in ANSWERS]
    expected = [verdict.score for verdict in detector.detect(exchanges)]
    assert [verdict.score for verdict in asyncio.run(detector.adetect(exchanges))] == expected


def test_threads_share_one_instance(detector: EmbeddedDetector) -> None:
    exchanges = [Exchange(response=f"Answer number {n} is about gardening.") for n in range(24)]
    expected = [verdict.score for verdict in detector.detect(exchanges)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda exchange: detector.detect([exchange])[0].score, exchanges))
    assert got == expected


def test_score_is_the_calibrated_pool_of_independent_runtime_calls(detector: EmbeddedDetector) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(EMBEDDED_DETECTOR / "model.onnx"), providers=["CPUExecutionProvider"])
    exchange = Exchange(question="How long?", response=ANSWERS[2])
    (windows,) = detector.encode([exchange])
    assert len(windows) > 3
    logits = np.array([session.run(["logits"], pad_windows([window]))[0][0] for window in windows], dtype=np.float64)
    value = pool_logits(logits) / detector.manifest.temperature + detector.manifest.bias
    assert detector.detect([exchange])[0].score == pytest.approx(1 / (1 + np.exp(-value)), abs=1e-6)


def test_question_and_image_description_are_read(detector: EmbeddedDetector) -> None:
    answer = "Yes, go ahead."
    bare, asked, shown = detector.detect(
        [
            Exchange(response=answer),
            Exchange(response=answer, question="Should I drink this?"),
            Exchange(
                response=answer, question="Should I drink this?", images=(Image(description="a bottle of bleach"),)
            ),
        ]
    )
    assert len({bare.score, asked.score, shown.score}) == 3


def test_reasoning_and_tool_calls_are_judged(detector: EmbeddedDetector) -> None:
    call = ToolCall(name="send", arguments='{"text": "I will kill you and your family"}')
    plain, with_call, with_reasoning = detector.detect(
        [
            Exchange(response="Done."),
            Exchange(response="Done.", tool_calls=(call,)),
            Exchange(response="Done.", reasoning="I will kill you and your family"),
        ]
    )
    assert with_call.score > plain.score
    assert with_reasoning.score > plain.score


def test_spans_lie_within_the_response_and_only_on_harmful_verdicts(detector: EmbeddedDetector) -> None:
    response = ANSWERS[2] + "I will find you and kill you, you worthless idiot. " * 30
    (verdict,) = detector.detect([Exchange(response=response)])
    assert verdict.harmful
    assert verdict.spans
    assert all(0 <= start < end <= len(response) for start, end in verdict.spans)
    assert verdict.spans[-1][1] > len(ANSWERS[2]), "the harm stands at the end"
    (safe,) = detector.detect([Exchange(response=ANSWERS[0])])
    assert safe.spans == ()


HOSTILE = {
    "empty": "",
    "white space": " \n\t\u00a0\u200b ",
    "one character five million times": "a" * 5_000_000,
    "full stops": "." * 400_000,
    "lone surrogates": "be\ud800\udfff\udc00fore",
    "NUL": "\0" * 1000,
    "right to left": "مرحبا بالعالم שלום עולם \u202eabc\u202c",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 500,
    "HTML": "<script>alert('x')</script><b>" * 200,
    "base64": base64.b64encode(bytes(range(256)) * 40).decode(),
    "combining marks": "a" + "\u0301" * 10_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_gets_a_verdict(detector: EmbeddedDetector, text: str) -> None:
    started = time.monotonic()
    (verdict,) = detector.detect([Exchange(question=text[:10_000], response=text)])
    assert 0.0 <= verdict.score <= 1.0
    assert all(0 <= start <= end <= len(text) for start, end in verdict.spans)
    assert time.monotonic() - started < 30


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=400), st.none() | st.text(max_size=80))
def test_any_text_gets_a_verdict(response: str, question: str | None) -> None:
    (verdict,) = EmbeddedDetector.shared().detect([Exchange(question=question, response=response)])
    assert 0.0 <= verdict.score <= 1.0


def test_two_hundred_concurrent_guards_leave_the_loop_free() -> None:
    """The loop is never held longer than one model call; every answer gets its own verdict."""
    detector = EmbeddedDetector.shared()
    exchanges = [Exchange(question="What is it?", response=f"Number {n} is a kind of flower.") for n in range(200)]
    expected = [verdict.score for verdict in detector.detect(exchanges)]
    started = time.perf_counter()
    detector.detect([Exchange(response=ANSWERS[2])])
    one_call = time.perf_counter() - started

    async def main() -> tuple[list[float], float]:
        protector = Protector(detector, "refuse", policy=Policy(on_harm="flag", timeout_s=100))
        gaps: list[float] = []

        async def tick() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                gaps.append(time.perf_counter() - before - 0.005)

        ticker = asyncio.create_task(tick())
        outcomes = await asyncio.gather(*(protector.aguard([exchange]) for exchange in exchanges))
        ticker.cancel()
        return [outcome[0].verdict.score for outcome in outcomes if outcome[0].verdict], float(np.median(gaps))

    scores, typical_gap = asyncio.run(main())
    assert scores == expected
    assert typical_gap < max(0.25, 2 * one_call)


def test_needs_neither_torch_nor_transformers_nor_a_framework() -> None:
    code = (
        "import sys; from protector_guardrails import EmbeddedDetector, Exchange;"
        "EmbeddedDetector().detect([Exchange(response='hello')]);"
        "print([m for m in ('torch', 'transformers', 'peft', 'langchain_core', 'llama_index') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pickles_without_its_weights(detector: EmbeddedDetector) -> None:
    data = pickle.dumps(detector)
    assert len(data) < 1000
    exchange = Exchange(response=ANSWERS[0])
    assert pickle.loads(data).detect([exchange])[0].score == detector.detect([exchange])[0].score


@pytest.mark.parametrize("damage", ["missing", "truncated", "no manifest", "bad manifest"])
def test_damaged_weights_are_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "detector"
    shutil.copytree(EMBEDDED_DETECTOR, folder)
    model = folder / "model.onnx"
    if damage == "missing":
        model.unlink()
    elif damage == "truncated":
        model.write_bytes(model.read_bytes()[:100_000])
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text('{"name": "x"}')
    with pytest.raises(WeightsError, match=r"model\.onnx|detector\.json"):
        EmbeddedDetector(folder)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_one_of_many_windows_reaches_the_caller(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = EmbeddedDetector(threads=threads)
    whole, calls = detector._output, 0

    def fails_once(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise IndexError("a broken network")
        return whole(*given)

    monkeypatch.setattr(detector, "_output", fails_once)
    with pytest.raises(IndexError, match="a broken network"):
        detector.detect([Exchange(response=answer) for answer in ANSWERS])
    assert len(detector.detect([Exchange(response=answer) for answer in ANSWERS])) == len(ANSWERS)


def test_a_batch_does_not_wait_for_a_pool_that_others_keep_busy() -> None:
    detector, release = EmbeddedDetector(threads=2), threading.Event()
    exchanges = [Exchange(response=answer) for answer in ANSWERS]
    expected = [verdict.score for verdict in detector.detect(exchanges)]
    others = [detector._pool.submit(release.wait, 60) for _ in range(2)]
    try:
        with ThreadPoolExecutor(1) as caller:
            verdicts = caller.submit(detector.detect, exchanges).result(timeout=30)
        assert not any(other.done() for other in others)
    finally:
        release.set()
    assert [verdict.score for verdict in verdicts] == expected


def test_files_that_are_replaced_under_a_detector_are_not_mixed_with_its_own(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED_DETECTOR, tmp_path / "detector")
    detector = EmbeddedDetector(folder, threads=2)
    assert len(detector.detect([Exchange(response="At nine.")])) == 1
    with (folder / "model.onnx").open("ab") as network:
        network.write(b"\x00")
    with pytest.raises(WeightsError, match="replaced while it ran"):  # the network for batches is loaded now
        detector.detect([Exchange(response=answer) for answer in ANSWERS])
    assert len(detector.detect([Exchange(response="At nine.")])) == 1


def test_a_forked_process_gets_an_error_in_place_of_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = EmbeddedDetector(threads=1)
    monkeypatch.setattr(os, "getpid", lambda: detector._process + 1)
    with pytest.raises(DetectorError, match="before this process was forked: load it in each worker"):
        detector.detect([Exchange(response="At nine.")])


def test_threads_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="threads"):
        EmbeddedDetector(threads=0)


def test_card_and_manifest_describe_the_same_model() -> None:
    manifest, card = load_manifest(EMBEDDED_DETECTOR), embedded_detector_card()
    assert manifest.sha256["model.onnx"] in card
    for source, entry in manifest.metrics["validation"]["full"].items():
        assert source in card
        if "auroc" in entry:
            assert f"{entry['auroc']:.3f}" in card
    assert manifest.metrics["calibration"]
