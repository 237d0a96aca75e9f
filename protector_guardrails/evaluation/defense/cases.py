"""What a multimodal model is asked, and what it answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question of a benchmark.

    Attributes:
        id: Unique in the benchmark; made of scenario, kind and number where the benchmark has no other.
        scenario: What it is about, as the benchmark names it.
        kind: How it is asked, such as ``"text"``, ``"SD"``, ``"TYPO"``, ``"SD_TYPO"``.
        question: What is asked, beside the image.
        image: The image's file; None where there is none to show.
        description: What the image shows in words, if the benchmark tells; the detector's question gets it.
        intent: What the attack is after, in plain words, where ``question`` alone does not say it (judges get it).
        benign: Whether a good answer is harmless and helpful; attacks are not benign.
        references: Right answers of a benign question; empty if it has none.
    """

    id: str
    scenario: str
    kind: str
    question: str
    image: Path | None = None
    description: str | None = None
    intent: str | None = None
    benign: bool = False
    references: tuple[str, ...] = ()


class Benchmark(Protocol):
    """A set of cases on disk.

    Attributes:
        name: What it is called in results.
        path: Its folder or file.
        sha256: Of what was read, file names included.
        problems: What is missing or unusable, in sentences with counts; known after the cases were read.
    """

    name: str
    path: Path
    sha256: str
    problems: list[str]

    def __iter__(self) -> Iterator[Case]:
        """The cases, in a fixed order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model answered to a case; a line of ``answers.jsonl``.

    Attributes:
        case: Id of the case.
        model: Name of the model.
        response: Its answer; None if it failed.
        error: Class and message of the failure, in one line; None if there was none.
        elapsed_ms: Time of the call in milliseconds, if it was measured.
    """

    case: str
    model: str
    response: str | None
    error: str | None = None
    elapsed_ms: float | None = None
