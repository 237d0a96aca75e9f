"""The detector that ships in the wheel: a small encoder on ONNX Runtime, no PyTorch."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protector_guardrails.detectors.attribution import Span, candidates
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detectors.encoding import PairEncoder, Window, pad_windows, pool_logits, pool_weights
from protector_guardrails.detectors.normalising import Reading, normalise
from protector_guardrails.errors import ConfigurationError, DetectorError, WeightsError
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
    time; further callers wait. A process that was forked after it was loaded gets a
    :class:`~protector_guardrails.errors.DetectorError` in place of verdicts. It takes some 100 MB, and 60 MB
    more from the first batch on: a single window is judged by all threads, several by one thread each.

    Args:
        folder: Another folder with the same files, such as the result of
            ``protector train export``.
        threads: CPU threads, and model calls at a time; None: all cores, at most four.
        normalise: Whether responses are judged without their disguises, such as look-alike letters
            or base64 (:mod:`~protector_guardrails.detectors.normalising`); what is returned stays
            as it came. None: as the detector was calibrated.

    Raises:
        ConfigurationError: If ``threads`` is below 1.
        WeightsError: If a file is missing, or is not the one that the manifest names.

    Example:
        >>> from protector_guardrails import EmbeddedDetector, Exchange
        >>> [verdict] = EmbeddedDetector().detect([Exchange(response="Water boils at 100 degrees Celsius.")])
        >>> verdict.harmful
        False
    """

    def __init__(
        self, folder: str | Path | None = None, *, threads: int | None = None, normalise: bool | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigurationError(f"threads must be at least 1, not {threads}")
        self.folder = Path(folder) if folder is not None else EMBEDDED_DETECTOR
        self.threads = threads
        self.manifest = load_manifest(self.folder)
        self.name = f"{self.manifest.name}@{self.manifest.version}"
        self.threshold, self.thresholds = self.manifest.threshold, self.manifest.thresholds
        self.categories = self.manifest.categories
        self.normalise = self.manifest.normalise if normalise is None else normalise
        self._asked = normalise
        used = self._at_once = threads or min(4, os.cpu_count() or 1)
        self.encoder = _encoder(self.folder, self.manifest)
        self._run_alone = _network(self.folder, self.manifest, threads=used)
        self._run_beside_others: _Run | None = None if used > 1 else self._run_alone
        self._loading = threading.Lock()
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(used, thread_name_prefix="embedded-detector")
        self._calls = threading.BoundedSemaphore(used)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.folder, self.threads, self._asked))

    @staticmethod
    def shared() -> EmbeddedDetector:
        """The one instance of the process with default settings, loaded at its first use."""
        with _SHARED_LOCK:
            return _shared()

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """Judge a batch; one verdict per exchange, with spans where passages of the response are harmful."""
        if not exchanges:
            return []
        started = time.perf_counter()
        judged = self._judge(exchanges)
        spans = self._attribute(exchanges, judged)
        elapsed_ms = (time.perf_counter() - started) * 1000 / len(exchanges)
        return [
            Verdict(
                harmful=each.score >= self.threshold,
                score=each.score,
                threshold=self.threshold,
                categories=self._categories(each),
                spans=spans.get(index, ()),
                detector=self.name,
                elapsed_ms=elapsed_ms,
            )
            for index, each in enumerate(judged)
        ]

    def encode(self, exchanges: Sequence[Exchange]) -> list[list[Window]]:
        """The windows of each exchange, at least one each; where they start and end in its passages as they came."""
        if not self.normalise:
            return self.encoder.encode([(exchange.judged_question, exchange.passages) for exchange in exchanges])
        read = [[normalise(passage) for passage in exchange.passages] for exchange in exchanges]
        encoded = self.encoder.encode(
            [
                (exchange.judged_question, [reading.text for reading in here])
                for exchange, here in zip(exchanges, read, strict=True)
            ]
        )
        return [
            [_located(window, here[window.passage]) for window in windows]
            for here, windows in zip(read, encoded, strict=True)
        ]

    def window_logits(self, windows: Sequence[Window]) -> NDArray[np.float64]:
        """Uncalibrated logit of harm of each window, float64 of shape (windows,)."""
        return self.window_outputs(windows)[:, 0]

    def window_outputs(self, windows: Sequence[Window]) -> NDArray[np.float64]:
        """What the network says of each window, float64 of shape (windows, 1 + categories).

        The first column is the uncalibrated logit of harm, the others are the logits of the
        manifest's categories. Windows with the same tokens are judged once.

        Raises:
            DetectorError: If this process was forked after the detector was loaded: its threads stayed behind.
        """
        if os.getpid() != self._process:
            raise DetectorError("the detector was loaded before this process was forked: load it in each worker")
        different = {(window.ids, window.question_length): window for window in windows}
        waiting = list(different.values())
        outputs: list[NDArray[np.float32]] = []
        if len(waiting) == 1:
            outputs.append(self._output(waiting[0], self._run_alone))
        else:
            run = self._beside_others()
            # In slices, so that little is left to do if the process ends or nobody waits any more.
            for start in range(0, len(waiting), _SLICE):
                outputs.extend(self._side_by_side(waiting[start : start + _SLICE], run))
        known = dict(zip(different, outputs, strict=True))
        rows = [known[window.ids, window.question_length] for window in windows]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(self.manifest.categories))

    def _side_by_side(self, windows: Sequence[Window], run: _Run) -> list[NDArray[np.float32]]:
        """All windows' outputs; each thread, this one too, takes the next window when it has done one.

        A task of the pool per window would cost a tenth of the time of short ones.
        """
        left = deque(range(len(windows)))
        outputs: dict[int, NDArray[np.float32]] = {}

        def work() -> None:
            while True:
                try:
                    index = left.popleft()
                except IndexError:  # all are done or being done
                    return
                outputs[index] = self._output(windows[index], run)

        helpers = [self._pool.submit(work) for _ in range(min(self._at_once, len(windows)) - 1)]
        try:
            work()
        finally:
            left.clear()  # after an error nobody goes on
        for helper in helpers:
            if not helper.cancel():  # one that waits behind other callers' has nothing left to do
                helper.result()
        return [outputs[index] for index in range(len(windows))]

    def _output(self, window: Window, run: _Run) -> NDArray[np.float32]:
        with self._calls:  # taken per window, so that a long answer does not hold up the short ones
            return run(pad_windows([window]))

    def _beside_others(self) -> _Run:
        """The network for windows that are judged side by side: calls that shared threads would wait for each other."""
        with self._loading:
            if self._run_beside_others is None:
                self._run_beside_others = _network(self.folder, self.manifest, threads=1)
            return self._run_beside_others

    def _judge(self, exchanges: Sequence[Exchange]) -> list[_Judged]:
        encoded = self.encode(exchanges)
        ends = np.cumsum([len(windows) for windows in encoded])
        outputs = np.split(self.window_outputs([window for windows in encoded for window in windows]), ends[:-1])
        return [
            _Judged(windows, rows, self.manifest.calibrated(pool_logits(rows[:, 0])))
            for windows, rows in zip(encoded, outputs, strict=True)
        ]

    def _categories(self, judged: _Judged) -> dict[str, float]:
        """P(harm) times P(category | harm) of the categories that are sure enough to be told."""
        if not self.manifest.categories:
            return {}
        logits = pool_weights(judged.outputs[:, 0]) @ judged.outputs[:, 1:] / self.manifest.category_temperature
        shares = pool_weights(logits)  # a softmax
        return {
            name: judged.score * min(float(share), 1.0)
            for name, share in zip(self.manifest.categories, shares, strict=True)
            if share >= self.manifest.category_floor
        }

    def _attribute(self, exchanges: Sequence[Exchange], judged: Sequence[_Judged]) -> dict[int, tuple[Span, ...]]:
        """The spans of the harmful ones, by their place in the batch; the sentences of all of them in one batch."""
        found = {
            index: candidates(exchanges[index].response, list(self._harmful_windows(each)))
            for index, each in enumerate(judged)
            if each.score >= self.threshold
        }
        pieces = [
            Exchange(response=exchange.response[start:end], question=exchange.question, images=exchange.images)
            for exchange, here in ((exchanges[index], here) for index, here in found.items())
            for start, end in here.pieces
        ]
        verdicts = iter(self._judge(pieces) if pieces else [])
        return {
            index: here.spans([next(verdicts).score >= self.threshold for _ in here.pieces])
            for index, here in found.items()
        }

    def _harmful_windows(self, judged: _Judged) -> Iterator[tuple[float, Span]]:
        for window, logit in zip(judged.windows, judged.outputs[:, 0], strict=True):
            if window.passage == 0 and self.manifest.calibrated(float(logit)) >= self.threshold:
                yield float(logit), (window.start, window.end)


@dataclass(frozen=True, slots=True)
class _Judged:
    """One exchange's windows, what the network said of each, and the calibrated P(harm) of all together."""

    windows: Sequence[Window]
    outputs: NDArray[np.float64]
    score: float


def _located(window: Window, reading: Reading) -> Window:
    start, end = reading.span(window.start, window.end)
    return replace(window, start=start, end=end)


_Run = Callable[[dict[str, "NDArray[np.int64]"]], "NDArray[np.float32]"]
"""One call of the network on padded windows: all its outputs, one after the other."""


def _encoder(folder: Path, manifest: DetectorManifest) -> PairEncoder:
    from tokenizers import Tokenizer

    return PairEncoder(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        max_tokens=manifest.max_tokens,
        question_tokens=manifest.question_tokens,
        overlap=manifest.overlap,
    )


def _network(folder: Path, manifest: DetectorManifest, *, threads: int) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads eat the cores that the application needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    network = (folder / "model.onnx").read_bytes()
    # Here too, since it is read later than the manifest: another network would not fit the calibration.
    if hashlib.sha256(network).hexdigest() != manifest.sha256.get("model.onnx"):
        raise WeightsError(
            f"{folder / 'model.onnx'} is not the file that the manifest was written for: "
            "where the detector was replaced while it ran, load it again"
        )
    session = onnxruntime.InferenceSession(network, sess_options=options, providers=["CPUExecutionProvider"])
    outputs = ["logits"]
    if manifest.categories:
        outputs.append("category_logits")
        widths = {output.name: output.shape[-1] for output in session.get_outputs()}
        if widths.get("category_logits") != len(manifest.categories):
            raise WeightsError(
                f"{folder / 'model.onnx'} has no output category_logits of width {len(manifest.categories)}, though "
                "its manifest names so many categories: export the detector again"
            )

    def run(inputs: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        return np.concatenate(
            [np.asarray(output, dtype=np.float32)[0].ravel() for output in session.run(outputs, inputs)]
        )

    return run


_SHARED_LOCK = threading.Lock()


@cache
def _shared() -> EmbeddedDetector:
    return EmbeddedDetector()


def _rebuild(folder: Path, threads: int | None, normalise: bool | None) -> EmbeddedDetector:
    return EmbeddedDetector(folder, threads=threads, normalise=normalise)
