"""What is judged and what is said of it.

Plain frozen dataclasses: they hold any ``str`` a model can produce, lone surrogates
included, and cost nothing to create on the hot path.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

Action = Literal["pass", "flag", "rewrite", "refuse", "raise"]
"""What was done with a response.

``pass``: judged safe and left as it came. ``flag``: judged harmful and let through on
the caller's wish. ``rewrite``: a safe version leaves. ``refuse``: a refusal leaves.
``raise``: an exception leaves.
"""


class HarmCategory(StrEnum):
    """Hazards of the MLCommons AILuminate taxonomy (version 1.0, twelve hazards), in its order.

    Example:
        >>> HarmCategory("privacy").label
        "violating somebody's privacy"
        >>> HarmCategory.from_benchmark("06-Fraud").value
        'non_violent_crimes'
    """

    VIOLENT_CRIMES = "violent_crimes"
    NON_VIOLENT_CRIMES = "non_violent_crimes"
    SEX_RELATED_CRIMES = "sex_related_crimes"
    CHILD_SEXUAL_EXPLOITATION = "child_sexual_exploitation"
    DEFAMATION = "defamation"
    SPECIALIZED_ADVICE = "specialized_advice"
    PRIVACY = "privacy"
    INTELLECTUAL_PROPERTY = "intellectual_property"
    INDISCRIMINATE_WEAPONS = "indiscriminate_weapons"
    HATE = "hate"
    SUICIDE_AND_SELF_HARM = "suicide_and_self_harm"
    SEXUAL_CONTENT = "sexual_content"

    @property
    def label(self) -> str:
        """How the hazard is named in a sentence, such as ``"hateful content"``."""
        return _LABELS[self]

    @classmethod
    def from_benchmark(cls, name: str) -> HarmCategory | None:
        """The hazard closest to a scenario of MM-SafetyBench or a topic of FigStep.

        Args:
            name: A scenario folder such as ``"06-Fraud"`` or a topic such as ``"Fraud"``;
                number, case and punctuation do not matter.

        Returns:
            The hazard, or None where the taxonomy has none (political lobbying, campaigning).
        """
        return _BENCHMARKS.get(_bare(name))


_LABELS: Mapping[HarmCategory, str] = {
    HarmCategory.VIOLENT_CRIMES: "violence",
    HarmCategory.NON_VIOLENT_CRIMES: "crime such as fraud or hacking",
    HarmCategory.SEX_RELATED_CRIMES: "sexual crimes",
    HarmCategory.CHILD_SEXUAL_EXPLOITATION: "the exploitation of children",
    HarmCategory.DEFAMATION: "defamation",
    HarmCategory.SPECIALIZED_ADVICE: "unqualified legal, medical or financial advice",
    HarmCategory.PRIVACY: "violating somebody's privacy",
    HarmCategory.INTELLECTUAL_PROPERTY: "infringing intellectual property",
    HarmCategory.INDISCRIMINATE_WEAPONS: "weapons",
    HarmCategory.HATE: "hateful content",
    HarmCategory.SUICIDE_AND_SELF_HARM: "suicide or self-harm",
    HarmCategory.SEXUAL_CONTENT: "sexual content",
}


def _bare(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalpha())


_BENCHMARKS: Mapping[str, HarmCategory] = {
    # MM-SafetyBench (arXiv 2311.17600), folder names as the benchmark spells them.
    "illegalactivitiy": HarmCategory.NON_VIOLENT_CRIMES,
    "hatespeech": HarmCategory.HATE,
    "malwaregeneration": HarmCategory.NON_VIOLENT_CRIMES,
    "physicalharm": HarmCategory.VIOLENT_CRIMES,
    "economicharm": HarmCategory.NON_VIOLENT_CRIMES,
    "fraud": HarmCategory.NON_VIOLENT_CRIMES,
    "sex": HarmCategory.SEXUAL_CONTENT,
    "privacyviolence": HarmCategory.PRIVACY,
    "legalopinion": HarmCategory.SPECIALIZED_ADVICE,
    "financialadvice": HarmCategory.SPECIALIZED_ADVICE,
    "healthconsultation": HarmCategory.SPECIALIZED_ADVICE,
    "govdecision": HarmCategory.SPECIALIZED_ADVICE,
    # FigStep (arXiv 2311.05608), topics.
    "illegalactivities": HarmCategory.NON_VIOLENT_CRIMES,
    "illegalactivity": HarmCategory.NON_VIOLENT_CRIMES,
    "adultcontent": HarmCategory.SEXUAL_CONTENT,
    "privacyviolation": HarmCategory.PRIVACY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that belongs to a question. It is never fetched and never looked into.

    Attributes:
        data: Encoded bytes (PNG, JPEG, ...), if the caller has them.
        url: Where the image is; kept for the record only.
        file_id: A provider's identifier of an uploaded file.
        mime_type: Such as ``"image/png"``.
        description: What the image shows or says in words (a caption, OCR text). It
            joins the question that is judged; without it the detector is blind to
            what the image adds.

    Example:
        >>> exchange = Exchange(response="Eat it.", images=(Image(description="a red mushroom with white dots"),))
        >>> exchange.judged_question
        '[image: a red mushroom with white dots]'
    """

    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    file_id: str | None = None
    mime_type: str | None = None
    description: str | None = None

    @classmethod
    def from_base64(cls, text: str, *, mime_type: str | None = None, description: str | None = None) -> Image:
        """An image from base64 text; text that is not base64 gives an image without data."""
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            data = None
        return cls(data=data, mime_type=mime_type, description=description)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that the model asks for; its arguments are judged as text.

    Example:
        >>> call = ToolCall(name="post", arguments='{"text": "Good morning"}')
        >>> Exchange(response="", tool_calls=(call,)).passages
        ('', 'post: {"text": "Good morning"}')
    """

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and the response to be judged.

    Attributes:
        response: What the model answered.
        question: What it was asked, if known. The paper's own inference judges the
            bare response; a question helps where the harm lies in what is agreed to.
        images: Images of the question.
        reasoning: Visible reasoning of the model; judged like the response.
        tool_calls: Tool calls of the model; judged like the response.
        model: Name of the model that answered, for the record only.
        run_id: The run in which it answered, for the record only.

    Example:
        >>> exchange = Exchange(question="When does it open?", response="At nine.", reasoning="The sign says nine.")
        >>> exchange.passages
        ('At nine.', 'The sign says nine.')
    """

    response: str
    question: str | None = None
    images: tuple[Image, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    model: str | None = None
    run_id: str | None = None

    @property
    def judged_question(self) -> str | None:
        """The question with what its images show, or None if neither is known."""
        return question_with_images(self.question, [image.description for image in self.images if image.description])

    @property
    def passages(self) -> tuple[str, ...]:
        """Every text that would reach a reader: the response, then reasoning and tool calls."""
        calls = (f"{call.name}: {call.arguments}" for call in self.tool_calls)
        return (self.response, *((self.reasoning,) if self.reasoning else ()), *calls)


def question_with_images(question: str | None, descriptions: Sequence[str]) -> str | None:
    """Join a question and descriptions of its images, as in training.

    >>> print(question_with_images("Should I eat this?", ["a red mushroom with white dots"]))
    Should I eat this?
    [image: a red mushroom with white dots]
    """
    lines = [question.strip()] if question and question.strip() else []
    lines += [f"[image: {description.strip()}]" for description in descriptions if description.strip()]
    return "\n".join(lines) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a detector says of one exchange.

    Attributes:
        harmful: The decision at ``threshold`` (or at a threshold of its own category).
        score: P(harm), from 0 (harmless) to 1 (harmful).
        threshold: Scores at or above it count as harmful.
        categories: Harm category to score in [0, 1]; empty where the detector tells none.
        spans: Character ranges ``(start, end)`` of the response that drove the score.
        detector: Name and version of the detector.
        elapsed_ms: Time the judgement took, in milliseconds, shared out over its batch.

    Raises:
        ValueError: If a score is not a number in [0, 1].

    Example:
        >>> verdict = Verdict(harmful=True, score=0.9, categories={"hate": 0.7, "privacy": 0.2}, detector="mine@1")
        >>> verdict.top_category
        'hate'
        >>> Verdict.from_dict(verdict.to_dict()) == verdict
        True
    """

    harmful: bool
    score: float
    threshold: float = 0.5
    categories: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()
    detector: str = "unnamed"
    elapsed_ms: float = 0.0

    def __post_init__(self) -> None:
        # Detectors hand over NumPy scalars and tensors; plain numbers compare, pickle and serialise everywhere.
        categories = {name: self._checked(name, score) for name, score in self.categories.items()}
        object.__setattr__(self, "score", self._checked("score", self.score))
        object.__setattr__(self, "threshold", self._checked("threshold", self.threshold))
        object.__setattr__(self, "harmful", bool(self.harmful))
        object.__setattr__(self, "elapsed_ms", float(self.elapsed_ms))
        object.__setattr__(self, "categories", MappingProxyType(categories))
        object.__setattr__(self, "spans", tuple((int(start), int(end)) for start, end in self.spans))

    def _checked(self, name: str, score: float) -> float:
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(score, str) or not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} of the verdict of {self.detector} must be a number in [0, 1], not {score!r}")
        return number

    def __reduce__(self) -> tuple[Any, ...]:  # a MappingProxyType does not pickle
        return (Verdict.from_dict, (self.to_dict(),))

    @property
    def top_category(self) -> str | None:
        """The category with the highest score, or None."""
        return max(self.categories, key=lambda name: self.categories[name]) if self.categories else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; :meth:`from_dict` reads it."""
        return {
            "harmful": self.harmful,
            "score": self.score,
            "threshold": self.threshold,
            "categories": dict(self.categories),
            "spans": [list(span) for span in self.spans],
            "detector": self.detector,
            "elapsed_ms": self.elapsed_ms,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Verdict:
        """Read what :meth:`to_dict` wrote; unknown keys are ignored.

        Raises:
            KeyError: If ``harmful`` or ``score`` is missing.
            ValueError: If a value is out of range.
        """
        return cls(
            harmful=bool(record["harmful"]),
            score=float(record["score"]),
            threshold=float(record.get("threshold", 0.5)),
            categories={str(name): float(score) for name, score in record.get("categories", {}).items()},
            spans=tuple((int(start), int(end)) for start, end in record.get("spans", ())),
            detector=str(record.get("detector", "unnamed")),
            elapsed_ms=float(record.get("elapsed_ms", 0.0)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one exchange.

    Attributes:
        exchange: What came in.
        text: What goes out: the response itself, its rewrite, or the refusal.
        action: What was done.
        verdict: The first judgement; None if the detector failed.
        recheck: The judgement of the last rewrite, if there was one.
        error: What went wrong, in one line without any text of the response; None if nothing did.
        elapsed_ms: Time from the call to the outcome, in milliseconds, for the whole batch.

    Example:
        >>> from protector_guardrails import Protector
        >>> [outcome] = Protector().guard([Exchange(question="When does it open?", response="At nine o'clock.")])
        >>> outcome.action, outcome.text, outcome.changed
        ('pass', "At nine o'clock.", False)
    """

    exchange: Exchange
    text: str
    action: Action
    verdict: Verdict | None = None
    recheck: Verdict | None = None
    error: str | None = None
    elapsed_ms: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether something other than the response leaves."""
        return self.action not in ("pass", "flag")

    def without_response(self) -> Outcome:
        """The same without what the model wrote, for places where nobody should find it."""
        return replace(self, exchange=replace(self.exchange, response="", reasoning=None, tool_calls=()))
