"""The two steps of ``mllm | HarmDetectorRunnable() | DetoxifierRunnable()``."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Annotated, Any, Literal

from pydantic import PrivateAttr, WithJsonSchema

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors import check_detector, check_thresholds
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier, check_detoxifier
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.langchain.guard_runnable import Ask, Delivery, Flow, GuardRunnable, Window
from protector_guardrails.langchain.guards import (
    Guard,
    guard_for,
    handed_on,
    read_record,
    released_in,
)
from protector_guardrails.langchain.items import Item
from protector_guardrails.policy import Policy, PolicyLike
from protector_guardrails.types import Exchange, Verdict

DetectorField = Annotated[HarmDetector, WithJsonSchema({"title": "HarmDetector", "type": "object"})]
DetoxifierField = Annotated[Detoxifier, WithJsonSchema({"title": "Detoxifier", "type": "object"})]


class HarmDetectorRunnable(GuardRunnable):
    """Judges what a model answered and writes the verdict beside it.

    ``mllm | HarmDetectorRunnable() | DetoxifierRunnable()`` guards the output of the chain.
    A bare ``mllm | guard`` still leaks raw tokens through callbacks, ``astream_events`` and
    LangGraph's ``messages`` stream, because the model emits its own callbacks;
    :func:`~protector_guardrails.protect` closes those ways.

    Input and output are of the same kind:

    - a message of any type, chunk or not: the verdict is in ``response_metadata["protector"]``;
    - a dict with ``response`` (message or text), ``question`` or ``messages``, and ``images``:
      the verdict is under ``"protector"``, and in the message too. Other keys pass as they are;
    - a text: a text comes out, which has no room for the verdict. Events tell it, and a
      :class:`DetoxifierRunnable` in the same chain takes it over.

    A safe response leaves as it came, and the input is never changed. What happens to a
    harmful one is ``policy.on_harm``: ``"detoxify"`` (the default) and ``"flag"`` mark it
    and leave the text to the next step; ``"refuse"`` puts the refusal in its place;
    ``"raise"`` raises. A detector that fails or runs out of time leads to the refusal,
    unless ``policy.on_error`` is ``"open"``.

    The question is taken from the input if it is there, otherwise from a recorder that
    sees the prompts of LangChain models in this process; where neither knows it, the bare
    response is judged. Only the last human turn counts as the question.

    A stream is held back until the response is complete: one chunk comes out. With
    ``Policy(streaming="window")`` messages and texts leave piece by piece, each after the
    text around it was judged; on harm the model is stopped. Of other chunks only those that
    can be added are gathered; of the rest the last one is judged and leaves.

    Args:
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        record_questions: Whether to record and look up questions. The recorder is put into
            every LangChain run when the first runnable with True is made.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.

    Raises:
        ConfigurationError: When made, if the detector is not known.
        InputError: When called, if the input holds no response.
        HarmfulResponseError: When called, under ``Policy(on_harm="raise")``.

    Example:
        >>> from langchain_core.messages import AIMessage
        >>> from protector_guardrails import HarmDetector, HarmDetectorRunnable, Verdict
        >>> class Shouting(HarmDetector):
        ...     name = "shouting@1"
        ...     def detect(self, exchanges):
        ...         return [Verdict(harmful=False, score=float(e.response.isupper())) for e in exchanges]
        >>> answer = HarmDetectorRunnable(Shouting()).invoke(AIMessage("STOP"))
        >>> answer.response_metadata["protector"]["harmful"]
        True
    """

    detector: Literal["embedded"] | DetectorField = "embedded"
    _guard: Guard = PrivateAttr()

    def __init__(
        self,
        detector: str | HarmDetector = "embedded",
        *,
        policy: PolicyLike | None = None,
        record_questions: bool = True,
        audit: AuditLog | str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        check_detector(detector)
        fields: dict[str, Any] = {
            "detector": detector,
            "policy": policy,
            "record_questions": record_questions,
            "audit": audit,
        }
        super().__init__(**fields, **kwargs)
        policy = self.policy or Policy()
        # What is to be detoxified is flagged here, and rewritten by a later step.
        acting = _acting(policy, "flag") if policy.on_harm == "detoxify" else policy
        self._guard = guard_for(self.detector, acting, audit=self.audit)

    def _window(self, scope: Any) -> Window | None:
        policy = self._guard.policy
        if policy.streaming == "full":
            return None
        asked = (self.policy or Policy()).on_harm
        return Window(self._guard, scope, stops_on_flag=asked == "detoxify", notes=True)

    def _flow(self, items: list[tuple[int, Item]], deliveries: list[Delivery], scopes: list[Any]) -> Flow:
        if items:
            outcomes = yield Ask(self._guard, [item.exchange for _, item in items])
            for (index, item), outcome in zip(items, outcomes, strict=True):
                deliveries[index].settle(item, outcome, self._guard, scopes[index])
        return deliveries


class DetoxifierRunnable(GuardRunnable):
    """Rewrites what was judged harmful, and judges the rewrite.

    A rewrite that is still harmful, empty or failed gives way to the refusal, so
    ``policy.on_harm`` does not matter here: it is always ``"detoxify"``. A safe response
    leaves as it came. Kinds of input and output are those of :class:`HarmDetectorRunnable`.

    After a :class:`HarmDetectorRunnable` its verdict stands, and the rewrite is judged by the
    same detector under the same policy. Where there is no verdict of this process, or the
    text is no longer the one that was judged, the response is judged here first: what
    leaves was always judged.

    A rewritten message has the id, name and usage of the response, and its text as one
    block; reasoning, tool calls, additional kwargs and metadata that could quote the
    response are gone. With a refusal generated images are gone too.

    Args:
        detoxifier: ``"embedded"``, a small language model (extra ``torch``; its base weights are
            fetched at the first rewrite, or before with ``protector models pull``), ``"redact"``,
            ``"refuse"``, a :class:`~protector_guardrails.Detoxifier`, or a chat model, which rewrites
            without seeing the image (:class:`~protector_guardrails.ChatModelDetoxifier`).
        detector: What judges here; left out, the detector that gave the verdict, or ``"embedded"``.
        policy: Thresholds and limits here; left out, those of the guard that gave the verdict.
        record_questions: Whether to record and look up questions.
        audit: Where outcomes are recorded; left out, where those of the guard that gave the verdict are.

    Raises:
        ConfigurationError: When made, if a name is not known.
        MissingExtraError: When made, if it is a language model of ours, and PyTorch is not installed.
        InputError: When called, if the input holds no response.

    Example:
        >>> from langchain_core.messages import AIMessage
        >>> from protector_guardrails import DetoxifierRunnable, HarmDetector, Verdict
        >>> class Shouting(HarmDetector):
        ...     name = "shouting@1"
        ...     def detect(self, exchanges):
        ...         return [Verdict(harmful=False, score=float(e.response.isupper())) for e in exchanges]
        >>> calm = DetoxifierRunnable("refuse", detector=Shouting(), policy={"refusal": "Let's stay calm."})
        >>> calm.invoke(AIMessage("STOP")).content
        "Let's stay calm."
    """

    detoxifier: str | DetoxifierField = "embedded"
    detector: Literal["embedded"] | DetectorField | None = None
    _guards: dict[str | None, Guard] = PrivateAttr(default_factory=dict)

    def __init__(
        self,
        detoxifier: AnyDetoxifier = "embedded",
        *,
        detector: str | HarmDetector | None = None,
        policy: PolicyLike | None = None,
        record_questions: bool = True,
        audit: AuditLog | str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        kept = check_detoxifier(detoxifier)
        if detector is not None:
            check_detector(detector)
        fields: dict[str, Any] = {"detoxifier": kept, "detector": detector, "policy": policy, "audit": audit}
        super().__init__(record_questions=record_questions, **fields, **kwargs)
        if self.policy and detector is not None:
            check_thresholds(self.policy, detector)

    def _guard_after(self, before: Guard | None) -> Guard:
        key = before.token if before else None
        if key not in self._guards:
            detector = self.detector or (before.detector if before else "embedded")
            policy = _acting(self.policy or (before.policy if before else Policy()), "detoxify")
            if len(self._guards) >= 8:  # after a detector that is made anew for each call
                self._guards.clear()
            guard = guard_for(detector, policy, self.detoxifier, self.audit or (before.audit if before else None))
            self._guards[key] = guard
            return guard
        return self._guards[key]

    def _window(self, scope: Any) -> Window | None:
        released = released_in(scope)
        guard = self._guard_after(released.guard if released else None)
        if guard.policy.streaming == "full":
            return None

        def verdict_on(record: Any, exchange: Exchange) -> Verdict | None:
            judged = read_record(record or handed_on(scope, exchange), exchange)
            if judged is None or (judged.verdict is None and judged.action != "refuse"):
                return None
            if judged.verdict and judged.action == "flag":
                return judged.verdict
            # Safe, or made so already: nothing is left to do here.
            return replace(judged.verdict, harmful=False) if judged.verdict else Verdict(harmful=False, score=0.0)

        return Window(guard, scope, judged=(released, verdict_on))

    def _flow(self, items: list[tuple[int, Item]], deliveries: list[Delivery], scopes: list[Any]) -> Flow:
        to_judge: dict[Guard, list[tuple[int, Item, Verdict | None]]] = {}
        to_rewrite: dict[Guard, list[tuple[int, Item, Verdict | None]]] = {}
        for index, item in items:
            record = item.record if item.has_room else handed_on(scopes[index], item.exchange)
            judged = read_record(record, item.exchange)
            guard = self._guard_after(judged.guard if judged else None)
            if judged is None or judged.verdict is None:
                if judged and judged.action == "refuse":  # the detector failed; its refusal is ours
                    deliveries[index].output = item.given
                else:
                    to_judge.setdefault(guard, []).append((index, item, None))
            elif judged.verdict.harmful and judged.action == "flag":
                to_rewrite.setdefault(guard, []).append((index, item, judged.verdict))
            else:  # safe, or made so already
                deliveries[index].output = item.given
        for work in (to_judge, to_rewrite):
            for guard, group in work.items():
                verdicts = [verdict for _, _, verdict in group if verdict]
                outcomes = yield Ask(guard, [item.exchange for _, item, _ in group], verdicts or None)
                for (index, item, verdict), outcome in zip(group, outcomes, strict=True):
                    deliveries[index].settle(item, outcome, guard, scopes[index], judged_here=verdict is None)
        return deliveries


def _acting(policy: Policy, on_harm: Literal["detoxify", "flag"]) -> Policy:
    return policy.model_copy(update={"on_harm": on_harm})
