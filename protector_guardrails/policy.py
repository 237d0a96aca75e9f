"""What counts as harmful and what follows."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.types import HarmCategory, Verdict

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
ThresholdName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""What a detector calls one of its thresholds, such as ``"fpr-1%"``."""

REFUSAL = (
    "I can't share the answer I had: it may involve {harm}. "
    "I'm glad to help with a safe side of this, such as how to prevent it, where to find support, or what the law says."
)
"""The default refusal; ``{harm}`` becomes the kind of harm, or "harm" where it is not known."""


class Policy(BaseModel):
    """Thresholds, actions, failure mode and limits of a guard. Immutable.

    Guards also take the path of a JSON file with these fields in place of a policy.

    Attributes:
        threshold: Score from which a response is harmful: a number, or the name of one of the
            detector's thresholds, such as ``"fpr-1%"`` (the embedded detector's are in its
            card). Or these by harm category, where ``"default"`` stands for the overall score
            (0.5 if left out).
        on_harm: What to do with a harmful response: rewrite it (``"detoxify"``), replace
            it by the refusal, let it through with its verdict (``"flag"``), or raise
            :class:`~protector_guardrails.errors.HarmfulResponseError`.
        on_error: What to do when a detector or detoxifier fails or runs out of time:
            ``"closed"`` refuses; ``"open"`` lets the unjudged response through. A failed
            rewrite of a response already judged harmful always refuses.
        timeout_s: Seconds for one call of the guard, all its judgements and rewrites
            together; None for no limit. Of a stream each judgement and rewrite has as long,
            since the time that the model writes is not the guard's.
        max_rewrites: How often a response may be rewritten before it is refused.
        refusal: Text of the refusal. ``{harm}`` is filled in; other braces are left alone.
        streaming: When a streamed response leaves: ``"full"`` after all of it was judged, so
            that nothing ever has to be taken back; ``"window"`` piece by piece, each after
            the text around it was judged. Harm that shows only in more text than a window
            holds is found at the end, when most of it has left.
        window_chars: Characters that are added between two judgements of a stream; half as many before the first.
        overlap_chars: Characters at the end of a judged window that are held back and judged
            again with the next one. No harm that is at most as long, and that the detector
            sees in a window, leaves even in part.

    Example:
        >>> policy = Policy(threshold={"default": 0.6, "hate": 0.3}, on_harm="refuse", timeout_s=5)
        >>> policy.apply(Verdict(harmful=False, score=0.5, categories={"hate": 0.4})).harmful
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Probability | ThresholdName | Mapping[str, Probability | ThresholdName] = 0.5
    on_harm: Literal["detoxify", "refuse", "flag", "raise"] = "detoxify"
    on_error: Literal["closed", "open"] = "closed"
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 30.0
    max_rewrites: Annotated[int, Field(ge=1, le=10)] = 1
    refusal: Annotated[str, Field(min_length=1)] = REFUSAL
    streaming: Literal["full", "window"] = "full"
    window_chars: Annotated[int, Field(ge=40, le=20_000)] = 320
    overlap_chars: Annotated[int, Field(ge=0, le=10_000)] = 96

    @field_validator("refusal")
    @classmethod
    def _not_blank(cls, refusal: str) -> str:
        if not refusal.strip():
            raise ValueError("the refusal must say something")
        return refusal

    @field_validator("threshold", mode="before")
    @classmethod
    def _numbers(cls, threshold: Any) -> Any:
        """Numbers that were written as text, on a command line say, are numbers."""
        if isinstance(threshold, Mapping):
            return {name: _number_in(value) for name, value in threshold.items()}
        return _number_in(threshold)

    @model_validator(mode="before")
    @classmethod
    def _of_file(cls, given: Any) -> Any:
        """So that whatever takes a policy takes the path of one."""
        return dict(cls.from_file(given)) if isinstance(given, str | os.PathLike) else given

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Policy:
        """The policy in a JSON file, such as ``protector tune-threshold`` writes.

        Args:
            path: The file: an object with fields of this class; what it leaves out has its default.

        Raises:
            ConfigurationError: If there is no such file, or it is not a policy; says which field is wrong.
        """
        file = Path(path)
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"the policy {file} cannot be read: {error.strerror or error}") from error
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ConfigurationError(f"{file} is not a policy: {where}{first['msg']}") from error

    def resolved(
        self, thresholds: Mapping[str, float], *, detector: str, categories: Collection[str] | None = None
    ) -> Policy:
        """This policy with numbers in place of the names of thresholds; a guard does this when it is built.

        Args:
            thresholds: The detector's thresholds, by name.
            detector: Name of the detector, for the error.
            categories: What the detector can tell; None where that is not known.

        Raises:
            ConfigurationError: If the detector has no threshold of that name, or never tells a category that has
                a threshold here: such a threshold would look like protection and never apply.
        """
        if categories is not None and (never := self._as_mapping.keys() - {"default", *categories}):
            named, known = (", ".join(repr(str(name)) for name in names) for names in (sorted(never), categories))
            raise ConfigurationError(
                f"the policy has a threshold for {named}, which the detector {detector} never tells; "
                f"it tells {known or 'no category at all'}, and 'default' is for the overall score"
            )
        if self.is_resolved:
            return self

        def number(value: float | str) -> float:
            if not isinstance(value, str):
                return value
            if value in thresholds:
                return thresholds[value]
            known = f"one of {', '.join(map(repr, thresholds))}, or a number" if thresholds else "a number"
            raise ConfigurationError(f"the detector {detector} has no threshold {value!r}: give {known} from 0 to 1")

        resolved = {name: number(value) for name, value in self._as_mapping.items()}
        return self.model_copy(
            update={"threshold": resolved if isinstance(self.threshold, Mapping) else resolved["default"]}
        )

    @property
    def is_resolved(self) -> bool:
        """Whether every threshold is a number."""
        return not any(isinstance(value, str) for value in self._as_mapping.values())

    @property
    def default_threshold(self) -> float:
        """Threshold of the overall score.

        Raises:
            ConfigurationError: If it has a name that was not resolved.
        """
        return self._by_category.get("default", 0.5)

    @property
    def strictest_threshold(self) -> float:
        """The lowest threshold, of the overall score or of a category."""
        return min([self.default_threshold, *self._by_category.values()])

    @property
    def _as_mapping(self) -> Mapping[str, float | str]:
        return self.threshold if isinstance(self.threshold, Mapping) else {"default": self.threshold}

    @property
    def _by_category(self) -> Mapping[str, float]:
        for value in self._as_mapping.values():
            if isinstance(value, str):
                raise ConfigurationError(
                    f"the policy's threshold {value!r} is a name: a guard looks it up at its detector, "
                    "Policy.resolved does elsewhere"
                )
        return cast("Mapping[str, float]", self._as_mapping)

    def apply(self, verdict: Verdict) -> Verdict:
        """The verdict under this policy's thresholds; they decide, not the detector's own.

        Raises:
            ConfigurationError: If a threshold has a name that was not resolved.
        """
        threshold, by_category = self.default_threshold, self._by_category
        harmful = verdict.score >= threshold or any(
            name in by_category and score >= by_category[name] for name, score in verdict.categories.items()
        )
        return replace(verdict, harmful=harmful, threshold=threshold, spans=verdict.spans if harmful else ())

    def refusal_for(self, verdict: Verdict | None) -> str:
        """The refusal, naming the kind of harm where the verdict tells it."""
        return render_refusal(self.refusal, verdict)


PolicyLike = Policy | Mapping[str, Any] | str | os.PathLike[str]
"""What guards take as a policy: one, its fields, or the path of a JSON file with them."""


def render_refusal(template: str, verdict: Verdict | None) -> str:
    """Fill ``{harm}`` of a refusal with the verdict's foremost category in plain words."""
    category = verdict.top_category if verdict else None
    try:
        harm = HarmCategory(category).label if category else "harm"
    except ValueError:  # a detector with categories of its own
        harm = str(category).replace("_", " ")
    return template.replace("{harm}", harm)


def _number_in(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
