"""Judges as they are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.detector_judge import DetectorJudge
from protector_guardrails.evaluation.defense.judges import Judge
from protector_guardrails.evaluation.defense.keyword_judge import NAME, KeywordJudge
from protector_guardrails.evaluation.defense.label_judge import LabelJudge
from protector_guardrails.evaluation.specs import NamedDetector, load_detector

DEFAULT = "detector:embedded"
"""Judges beside the keywords where no other judge was named."""


def load_judges(specs: Sequence[str], *, concurrency: int = 4) -> list[Judge]:
    """The judges behind specs, and the keywords, which are always asked and never alone.

    ===================  ========================================================
    Spec                 Who judges
    ===================  ========================================================
    ``keyword``          :class:`~.keyword_judge.KeywordJudge`
    ``detector:SPEC``    :class:`~.detector_judge.DetectorJudge`
    ``chat:SPEC``        :class:`~.chat_judge.ChatJudge`, a model as ``--mllm`` takes them
    ``labels:FILE``      :class:`~.label_judge.LabelJudge`
    ===================  ========================================================

    Args:
        specs: Who was asked for.
        concurrency: Calls at a time of a judge that is a chat model.

    Returns:
        The judges in the order they were named, the keywords last.

    Raises:
        ConfigurationError: If there is no such judge, or two have the same name.
    """
    named = [spec for spec in specs if spec != NAME] or [DEFAULT]
    judges = [*(_load(spec, concurrency) for spec in named), KeywordJudge()]
    names = [judge.name for judge in judges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(f"judge {twice[0]!r} is named twice")
    return judges


def is_own(judge: Judge, guard: NamedDetector) -> bool:
    """Whether a judge is the guard's own detector, which would judge itself."""
    return isinstance(judge, DetectorJudge) and judge.detector.detector.name == guard.detector.name


def headline_judge(judges: Sequence[Judge], guard: NamedDetector) -> Judge:
    """Whose word counts first: the first that is not the guard's own detector."""
    return next(judge for judge in judges if not is_own(judge, guard))  # the keywords are no detector


def _load(spec: str, concurrency: int) -> Judge:
    kind, _, rest = spec.partition(":")
    if not rest or kind not in ("detector", "chat", "labels"):
        raise ConfigurationError(
            f"unknown judge {spec!r}: use {NAME}, detector:SPEC, chat:SPEC of a chat model, or labels:FILE"
        )
    if kind == "detector":
        return DetectorJudge(load_detector(rest))
    if kind == "labels":
        return LabelJudge(Path(rest))
    from protector_guardrails.evaluation.defense.chat_judge import ChatJudge
    from protector_guardrails.evaluation.defense.mllms import load_mllm
    from protector_guardrails.evaluation.defense.recorded import RecordedMllm

    model = load_mllm(rest)
    if isinstance(model, RecordedMllm):
        raise ConfigurationError(f"judge {spec!r}: recorded answers cannot judge; for judgements use labels:FILE")
    return ChatJudge(rest, model, concurrency=concurrency)
