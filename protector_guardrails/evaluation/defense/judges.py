"""Who says whether a text is harmful, and the panel of all who are asked.

A judge sees what left in an arm. Two things need none: an empty text, and the guard's own
refusal, whose words are the developer's; both are harmless by definition, unless a human
label says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from protector_guardrails.evaluation.defense.agreement import Compared
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.kept import KeptLines, digest
from protector_guardrails.evaluation.defense.results import Agreement, Arm, JudgeResult
from protector_guardrails.evaluation.results import Failure

JudgeKind = Literal["keyword", "detector", "chat_model", "labels"]

FOLDER = "judgements"

_MOST_FAILURES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedText:
    """A text that left, and of which question.

    Attributes:
        case: The question.
        text: The text.
        arms: In which arms it left.
        by_guard: Whether it is the guard's own refusal.
    """

    case: Case
    text: str
    arms: tuple[Arm, ...]
    by_guard: bool = False

    @property
    def harmless(self) -> bool:
        """Whether it is harmless by definition."""
        return self.by_guard or not self.text.strip()

    @property
    def key(self) -> int:
        """Stands for all that a judge is shown."""
        return digest(self.case.question, self.case.description, self.case.intent, self.text)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says of a text.

    Attributes:
        harmful: Whether it is harmful; None if the judge cannot say.
        reason: Why not, in words that quote no text.
        failed: Whether it failed rather than could not say; then it is asked again in a resumed run.
    """

    harmful: bool | None
    reason: str | None = None
    failed: bool = False


class Judge(ABC):
    """Says whether texts are harmful.

    Attributes:
        name: What it is called in results.
        kind: Its kind.
        spec: What it was asked for with.
        version: Version of its prompt, list or weights.
        kept: Whether its opinions are worth keeping on disk; one per question and text.
    """

    name: str
    spec: str
    version: str
    kind: ClassVar[JudgeKind]
    kept: ClassVar[bool] = True

    @abstractmethod
    def judge(self, texts: Sequence[JudgedText]) -> list[Opinion]:
        """One opinion per text, in order; a failure is an opinion too."""

    def problems(self) -> list[str]:
        """What a reader must know of it, in sentences, once all texts were judged."""
        return []

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what it holds."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Changes when its opinions may."""
        return {"judge": self.spec, "kind": self.kind, "version": self.version}


class Panel:
    """All judges. The same text on the same question is judged once.

    Args:
        judges: The judges; their names differ.
        folder: Where opinions are kept, and taken from.
    """

    def __init__(self, judges: Sequence[Judge], *, folder: Path) -> None:
        self.judges = tuple(judges)
        self._kept = {
            judge.name: KeptLines(folder / FOLDER, judge.fingerprint, _from_entry) for judge in judges if judge.kept
        }
        self._seen: set[int] = set()
        self._answered: Counter[str] = Counter()
        self._unusable: dict[str, Counter[str]] = {judge.name: Counter() for judge in judges}
        self._compared = {(a.name, b.name): Compared() for a, b in combinations(judges, 2)}

    def ask(self, texts: Sequence[JudgedText]) -> list[dict[str, bool | None]]:
        """Per text, by the judge's name: harmful, or not, or None where the judge cannot say."""
        keys = [text.key for text in texts]
        asked = {judge.name: self._ask(judge, texts, keys) for judge in self.judges}
        found: list[dict[str, bool | None]] = []
        for index, (text, key) in enumerate(zip(texts, keys, strict=True)):
            opinions = {name: opinions[index] for name, opinions in asked.items()}
            if not text.harmless and key not in self._seen:
                self._seen.add(key)
                self._count(opinions)
            found.append({name: False if opinion is None else opinion.harmful for name, opinion in opinions.items()})
        return found

    def results(self) -> list[JudgeResult]:
        """Each judge, with how many different texts it judged."""
        return [
            JudgeResult(
                name=judge.name,
                kind=judge.kind,
                spec=judge.spec,
                version=judge.version,
                answered=self._answered[judge.name],
                unusable=[
                    Failure(error=reason, answers=count)
                    for reason, count in self._unusable[judge.name].most_common(_MOST_FAILURES)
                ],
            )
            for judge in self.judges
        ]

    def agreement(self) -> list[Agreement]:
        """Every pair of judges."""
        return [compared.agreement(*names) for names, compared in self._compared.items()]

    def problems(self) -> list[str]:
        """What a reader must know, in sentences."""
        return [problem for judge in self.judges for problem in judge.problems()]

    def _ask(self, judge: Judge, texts: Sequence[JudgedText], keys: Sequence[int]) -> list[Opinion | None]:
        """An opinion per text; None where it is harmless by definition."""
        if judge.kind == "labels":
            labelled = judge.judge(texts)
            return [
                None if text.harmless and opinion.harmful is None else opinion
                for text, opinion in zip(texts, labelled, strict=True)
            ]
        kept = self._kept.get(judge.name)
        known: dict[int, Opinion] = {}
        todo: dict[int, JudgedText] = {}
        for text, key in zip(texts, keys, strict=True):
            if text.harmless or key in known or key in todo:
                continue
            if kept is not None and (opinion := kept.get(key)) is not None:
                known[key] = opinion
            else:
                todo[key] = text
        fresh = dict(zip(todo, judge.judge(list(todo.values())), strict=True)) if todo else {}
        if kept is not None and fresh:
            kept.put([(key, _to_entry(opinion)) for key, opinion in fresh.items()])
        known |= fresh
        return [None if text.harmless else known[key] for text, key in zip(texts, keys, strict=True)]

    def _count(self, opinions: Mapping[str, Opinion | None]) -> None:
        said = {name: opinion.harmful for name, opinion in opinions.items() if opinion is not None}
        for name, opinion in opinions.items():
            if opinion is not None and opinion.harmful is not None:
                self._answered[name] += 1
            elif opinion is not None:
                self._unusable[name][opinion.reason or "no reason given"] += 1
        for (first, second), compared in self._compared.items():
            compared.add(said.get(first), said.get(second))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for judge in self.judges:
            judge.close()
        for kept in self._kept.values():
            kept.__exit__()


def _to_entry(opinion: Opinion) -> dict[str, Any]:
    return {"harmful": opinion.harmful, "reason": opinion.reason, "failed": opinion.failed}


def _from_entry(entry: Mapping[str, Any]) -> Opinion | None:
    if entry["harmful"] not in (True, False, None):
        raise ValueError("harmful must be true, false or null")
    return None if entry["failed"] else Opinion(entry["harmful"], entry["reason"])
