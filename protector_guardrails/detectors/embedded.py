"""The detector that ships in the wheel: a small encoder on ONNX Runtime, no PyTorch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.encoding import PairEncoder, Window, pad_windows, pool_logits
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.models import EMBEDDED_DETECTOR, DetectorManifest, load_manifest
from protector_guardrails.types import Exchange, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray


_SLICE = 64


class EmbeddedDetector(HarmDetector):
    """Judges responses with the weights that come with the package.

    A fine-tuned all-MiniLM-L6-v2 (22.7 M parameters, int8). It reads the response,
    and, where they are known, the question and the descriptions of its images. Long
    texts are judged in overlapping windows, and the most harmful ones decide. It reads
    English; what an image shows without a description, it does not know. Figures and
    weaknesses are in its model card (``protector models card``).

    Every window is a model call of its own, ``threads`` of them side by side: the int8
    arithmetic scales activations by the largest of a batch, so in a batch a response's
    score would depend on its neighbours. A response thus gets the same score, to the bit,
    alone and in any batch.

    Safe to share between threads. One instance makes at most ``threads`` model calls at a
    time; further callers wait. Do not share it across ``fork``.

    Args:
        folder: Another folder with the same files, such as the result of
            ``protector train export``.
        threads: CPU threads, and model calls at a time; None: all cores, at most four.

    Raises:
        ConfigurationError: If ``threads`` is below 1.
        WeightsError: If a file is missing, or is not the one that the manifest names.

    Example:
        >>> from protector_guardrails import EmbeddedDetector, Exchange
        >>> [verdict] = EmbeddedDetector().detect([Exchange(response="Water boils at 100 degrees Celsius.")])
        >>> verdict.harmful
        False
    """

    def __init__(self, folder: str | Path | None = None, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads must be at least 1, not {threads}")
        self.folder = Path(folder) if folder is not None else EMBEDDED_DETECTOR
        self.threads = threads
        self.manifest = load_manifest(self.folder)
        self.name = f"{self.manifest.name}@{self.manifest.version}"
        used = threads or min(4, os.cpu_count() or 1)
        self.encoder, self._run = _load(self.folder, self.manifest, used)
        self._pool = ThreadPoolExecutor(used, thread_name_prefix="embedded-detector")
        self._calls = threading.BoundedSemaphore(used)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.folder, self.threads))

    @staticmethod
    def shared() -> EmbeddedDetector:
        """The one instance of the process with default settings, loaded at its first use."""
        with _SHARED_LOCK:
            return _shared()

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge a batch; one verdict per exchange, with spans where windows of the response are harmful."""
        if not exchanges:
            return []
        started = time.perf_counter()
        encoded = self.encode(exchanges)
        ends = np.cumsum([len(windows) for windows in encoded])
        logits = np.split(self.window_logits([window for windows in encoded for window in windows]), ends[:-1])
        elapsed_ms = (time.perf_counter() - started) * 1000 / len(exchanges)
        return [
            self._verdict(windows, scores, elapsed_ms=elapsed_ms)
            for windows, scores in zip(encoded, logits, strict=True)
        ]

    def encode(self, exchanges: Sequence[Exchange]) -> list[list[Window]]:
        """The windows of each exchange, at least one each."""
        return self.encoder.encode([(exchange.judged_question, exchange.passages) for exchange in exchanges])

    def window_logits(self, windows: Sequence[Window]) -> NDArray[np.float64]:
        """Uncalibrated logit of harm of each window, float64 of shape (windows,).

        Windows with the same tokens are judged once.
        """
        different = {(window.ids, window.question_length): window for window in windows}
        waiting = list(different.values())
        logits: list[float] = []
        if len(waiting) == 1:
            logits.append(self._logit(waiting[0]))
        else:
            # In slices, so that little is left to do if the process ends or nobody waits any more.
            for start in range(0, len(waiting), _SLICE):
                logits.extend(self._pool.map(self._logit, waiting[start : start + _SLICE]))
        known = dict(zip(different, logits, strict=True))
        return np.array([known[window.ids, window.question_length] for window in windows])

    def _logit(self, window: Window) -> float:
        with self._calls:  # taken per window, so that a long answer does not hold up the short ones
            return float(self._run(pad_windows([window]))[0])

    def _verdict(self, windows: Sequence[Window], logits: NDArray[np.float64], *, elapsed_ms: float) -> Verdict:
        score = self.manifest.calibrated(pool_logits(logits))
        harmful = score >= self.manifest.threshold
        spans: list[tuple[int, int]] = []
        if harmful:
            for window, logit in zip(windows, logits, strict=True):
                if window.passage == 0 and self.manifest.calibrated(float(logit)) >= self.manifest.threshold:
                    if spans and window.start <= spans[-1][1]:
                        spans[-1] = (spans[-1][0], window.end)
                    else:
                        spans.append((window.start, window.end))
        return Verdict(
            harmful=harmful,
            score=score,
            threshold=self.manifest.threshold,
            spans=tuple(spans),
            detector=self.name,
            elapsed_ms=elapsed_ms,
        )


def _load(
    folder: Path, manifest: DetectorManifest, threads: int
) -> tuple[PairEncoder, Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]]:
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads eat the cores that the application needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        (folder / "model.onnx").read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    encoder = PairEncoder(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        max_tokens=manifest.max_tokens,
        question_tokens=manifest.question_tokens,
        overlap=manifest.overlap,
    )

    def run(inputs: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        (logits,) = session.run(["logits"], inputs)
        return np.asarray(logits, dtype=np.float32)

    return encoder, run


_SHARED_LOCK = threading.Lock()


@cache
def _shared() -> EmbeddedDetector:
    return EmbeddedDetector()


def _rebuild(folder: Path, threads: int | None) -> EmbeddedDetector:
    return EmbeddedDetector(folder, threads=threads)
