"""Running recorded answers through the real chain, and counting what happened."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.policy import Policy

CHUNK = 16


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recorded answer and what the chain made of it.

    Attributes:
        record: The record.
        flagged: What the detector decided; None if it failed.
        score: P(harm), None if the detector failed.
        action: What was done.
        detector_ms: Time of the judgement.
        chain_ms: Time of the whole chain, shared out over the answers of a batch.
    """

    record: Mapping[str, Any]
    flagged: bool | None
    score: float | None
    action: str
    detector_ms: float | None
    chain_ms: float

    @property
    def label(self) -> bool | None:
        """The human label, if there is one."""
        return self.record.get("harmful")

    @property
    def model(self) -> str:
        """The model that gave the answer, without its maker."""
        return str(self.record.get("model") or "unknown").replace("--", "/").rsplit("/", 1)[-1]

    @property
    def delicate(self) -> bool:
        """Whether it must be masked: a person or the detector calls it harmful, or nobody knows."""
        return bool(self.label) or self.flagged is not False


def read_records(path: Path, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Read recorded answers from JSON Lines, plain or ``.gz``.

    Raises:
        ConfigurationError: If a line is not a record with a question and a response, or there is none.
    """
    records: list[dict[str, Any]] = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if limit is not None and len(records) >= limit:
                    break
                if line.strip():
                    records.append(_record(path, number, line))
    except (EOFError, gzip.BadGzipFile) as error:
        raise ConfigurationError(f"{path} is a damaged gzip file") from error
    if not records:
        raise ConfigurationError(f"{path} holds no records")
    return records


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ConfigurationError(f"{path}, line {number}: not a JSON object")
    for name, kinds in (
        ("question", str),
        ("response", str),
        ("image_desc", str | None),
        ("model", str | None),
        ("harmful", bool | None),
    ):
        if not isinstance(record.get(name), kinds):
            raise ConfigurationError(f"{path}, line {number}: field {name!r} is missing or of the wrong type")
    return record


def replay(
    records: Sequence[Mapping[str, Any]], *, detoxifier: str, policy: Policy, progress: Callable[[int], None]
) -> list[Replayed]:
    """Ask every recorded question through ``model | detector | detoxifier``, one chain per model.

    Args:
        records: Recorded answers.
        detoxifier: Name of the detoxifier.
        policy: Policy of the guard.
        progress: Is told how many more answers are done.

    Returns:
        What happened, in the order of the records.
    """
    from protector_guardrails.detectors.embedded import EmbeddedDetector
    from protector_guardrails.langchain.replay import ReplayChatModel, question_message
    from protector_guardrails.langchain.runnables import DetoxifierRunnable, HarmDetectorRunnable

    detector = EmbeddedDetector.shared()  # loaded before the clock runs
    results: dict[int, Replayed] = {}
    for positions in _by_model(records):
        own = [records[position] for position in positions]
        model = ReplayChatModel(records=own, model=own[0].get("model"))
        chain = model | HarmDetectorRunnable(detector=detector, policy=policy) | DetoxifierRunnable(detoxifier)
        for start in range(0, len(own), CHUNK):
            chunk = own[start : start + CHUNK]
            began = time.perf_counter()
            replies = chain.batch([[question_message(record)] for record in chunk])
            chain_ms = (time.perf_counter() - began) * 1000 / len(chunk)
            for position, record, reply in zip(positions[start:], chunk, replies, strict=False):
                results[position] = _replayed(record, reply.response_metadata.get("protector") or {}, chain_ms)
            progress(len(chunk))
    return [results[position] for position in range(len(records))]


def _by_model(records: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    positions: dict[Any, list[int]] = {}
    for position, record in enumerate(records):
        positions.setdefault(record.get("model"), []).append(position)
    yield from positions.values()


def _replayed(record: Mapping[str, Any], told: Mapping[str, Any], chain_ms: float) -> Replayed:
    judged = told.get("score") is not None
    return Replayed(
        record=record,
        flagged=bool(told["harmful"]) if judged else None,
        score=float(told["score"]) if judged else None,
        action=str(told.get("action") or "unjudged"),
        detector_ms=float(told.get("elapsed_ms") or 0.0) if judged else None,
        chain_ms=chain_ms,
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and times of a replay.

    Attributes:
        confusion: (labelled harmful, flagged) to the number of answers; unlabelled and unjudged ones are left out.
        actions: Action to the number of answers.
        detector_ms: Median and 95th percentile of the detector's time per answer.
        chain_ms: The same of the whole chain.
    """

    confusion: Counter[tuple[bool, bool]]
    actions: Counter[str]
    detector_ms: tuple[float, float] | None
    chain_ms: tuple[float, float]


def summarise(results: Sequence[Replayed]) -> Summary:
    """Count and measure."""
    times = [result.detector_ms for result in results if result.detector_ms is not None]
    return Summary(
        confusion=Counter(
            (result.label, result.flagged)
            for result in results
            if result.label is not None and result.flagged is not None
        ),
        actions=Counter(result.action for result in results),
        detector_ms=_median_and_p95(times) if times else None,
        chain_ms=_median_and_p95([result.chain_ms for result in results]),
    )


def _median_and_p95(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
