"""What leaves of one answer: bare, behind a guard that refuses, behind a guard that rewrites."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from protector_guardrails import __version__
from protector_guardrails.detoxifiers import AnyDetoxifier, Detoxifier, resolve_detoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.kept import KeptLines, digest
from protector_guardrails.evaluation.defense.results import Arm
from protector_guardrails.evaluation.importing import import_object
from protector_guardrails.evaluation.specs import NamedDetector
from protector_guardrails.policy import Policy
from protector_guardrails.protector import Protector
from protector_guardrails.types import Exchange, Image, Outcome, Verdict

GuardAction = Literal["pass", "refuse", "detoxify"]

FOLDER = "guard"
GUARDS: tuple[Arm, ...] = ("detector", "detoxifier")


@dataclass(frozen=True, slots=True)
class Left:
    """What left in one arm.

    Attributes:
        text: The text.
        action: What the guard did.
        added_ms: Milliseconds from the answer until the text left; judging counts in both guarded arms.
        error: What failed in the guard, in a line without any text of the answer.
    """

    text: str
    action: GuardAction
    added_ms: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Guarded:
    """What became of one answer.

    Attributes:
        score: The detector's P(harm); None if it failed.
        harmful: Its verdict under the policy; None if it failed.
        arms: What left.
    """

    score: float | None
    harmful: bool | None
    arms: Mapping[Arm, Left]


@dataclass(frozen=True, slots=True)
class NamedDetoxifier:
    """A detoxifier and the words it was asked for with.

    Attributes:
        spec: A name or an import path.
        detoxifier: The detoxifier.
    """

    spec: str
    detoxifier: Detoxifier

    @property
    def name(self) -> str:
        """Its name, if it has one, else what it was asked for with."""
        name = getattr(self.detoxifier, "name", None)
        return name if isinstance(name, str) and name else self.spec

    @property
    def fingerprint(self) -> str:
        """Changes with its name and source code. Options that neither tells need another name."""
        kind = type(self.detoxifier)
        try:
            source = inspect.getsource(inspect.getmodule(kind) or kind)
        except (OSError, TypeError):  # written in a console
            source = ""
        parts = [self.spec, self.name, f"{kind.__module__}.{kind.__qualname__}", source]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Guard:
    """Both guarded arms; the detector is asked once for both.

    Answers are guarded one at a time, as a chain would, so that the times are those a reader
    waits. The detector sees the question and what the image shows where the benchmark tells
    that, as it would in use; never what an attack is after, nor a right answer.

    Args:
        detector: The detector.
        detoxifier: The detoxifier.
        policy: Thresholds and limits; what is done on harm is up to the arm.
        folder: Where outcomes are kept, and taken from.
    """

    def __init__(self, detector: NamedDetector, detoxifier: NamedDetoxifier, *, policy: Policy, folder: Path) -> None:
        refusing = Protector(detector.detector, "refuse", policy=policy.model_copy(update={"on_harm": "refuse"}))
        rewriting = Protector(
            detector.detector, detoxifier.detoxifier, policy=policy.model_copy(update={"on_harm": "detoxify"})
        )
        self._protectors: dict[Arm, Protector] = {"detector": refusing, "detoxifier": rewriting}
        header = {
            "package": __version__,
            "detector": detector.fingerprint,
            "detoxifier": detoxifier.fingerprint,
            "policy": described(policy),
        }
        self._kept = KeptLines(folder / FOLDER, header, _usable)

    def guard(self, case: Case, response: str) -> Guarded:
        """What leaves of an answer in each arm. One that was guarded already is not guarded again."""
        key = digest(case.question, case.description, response)
        entry = self._kept.get(key)
        if entry is None:
            entry = {"case": case.id, **self._guard(_exchange(case, response))}  # so that people can label the texts
            self._kept.put([(key, entry)])
        return _guarded(entry, response)

    def _guard(self, exchange: Exchange) -> dict[str, Any]:
        first = self._protectors["detector"]
        began = time.perf_counter()
        [verdict] = first.asker.run(first.judging([exchange]))
        judged_ms = (time.perf_counter() - began) * 1000
        arms: dict[str, Any] = {}
        for arm, protector in self._protectors.items():
            began = time.perf_counter()
            [outcome] = protector.asker.run(protector.deciding([exchange], [verdict]))
            added_ms = judged_ms + (time.perf_counter() - began) * 1000
            arms[arm] = {
                "text": None if outcome.text == exchange.response else outcome.text,
                "action": _action(outcome),
                "ms": round(added_ms, 3),
                "error": outcome.error,
            }
        told = verdict if isinstance(verdict, Verdict) else None
        return {"score": told and told.score, "harmful": told and told.harmful, "arms": arms}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.__exit__()


def described(policy: Policy) -> dict[str, Any]:
    """A policy as results tell it: without what is done on harm, in which the arms differ."""
    return policy.model_dump(mode="json", exclude={"on_harm"})


def load_detoxifier(spec: AnyDetoxifier) -> NamedDetoxifier:
    """The detoxifier of a name or an import path, or the one given.

    An import path leads to a :class:`Detoxifier` or a chat model, or to a class or function that
    gives one without arguments.

    Raises:
        ConfigurationError: If there is none.
    """
    if not isinstance(spec, str):
        detoxifier = resolve_detoxifier(spec)
        return NamedDetoxifier(type(detoxifier).__name__, detoxifier)
    if ":" not in spec:
        return NamedDetoxifier(spec, resolve_detoxifier(spec))
    found = import_object(spec, what="detoxifier")
    if inspect.isclass(found) or inspect.isroutine(found):
        try:
            found = found()
        except Exception as error:
            raise ConfigurationError(
                f"detoxifier {spec!r} could not be made: {type(error).__name__}: {error}"
            ) from error
    return NamedDetoxifier(spec, resolve_detoxifier(found))


def _exchange(case: Case, response: str) -> Exchange:
    images = (Image(description=case.description),) if case.image or case.description else ()
    return Exchange(question=case.question, response=response, images=images)


def _action(outcome: Outcome) -> GuardAction:
    if outcome.action == "rewrite":
        return "detoxify"
    return "pass" if outcome.action in ("pass", "flag") else "refuse"


def _guarded(entry: Mapping[str, Any], response: str) -> Guarded:
    arms: dict[Arm, Left] = {"none": Left(response, "pass")}
    for arm in GUARDS:
        left = entry["arms"][arm]
        text = response if left["text"] is None else str(left["text"])
        arms[arm] = Left(text, left["action"], float(left["ms"]), left["error"])
    return Guarded(entry["score"], entry["harmful"], arms)


def _usable(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    failed = any(left.error is not None for left in _guarded(entry, "").arms.values())
    return None if failed else entry  # what failed may go well the next time
