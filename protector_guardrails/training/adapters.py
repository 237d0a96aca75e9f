"""Files of labelled answers in the forms in which they are published, as one kind of record.

Every form says somewhere which answers are harmful; here that is always ``True`` for harmful. Sets that
label safety the other way round (PKU-SafeRLHF, BeaverTails, the paper's code) are turned here, and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.tables import read_records
from protector_guardrails.training.data import normalise
from protector_guardrails.training.detox_data import DetoxPair
from protector_guardrails.training.refusals import REFUSALS
from protector_guardrails.types import question_with_images

Form = Literal["own", "pairs", "pku-saferlhf", "beavertails"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its label."""

    text: str
    harmful: bool


@dataclass(frozen=True, slots=True)
class LabelledAnswers:
    """A question with one or two answers.

    Attributes:
        question: What was asked, with what its images show; empty if that is not known.
        answers: One or two.
        source: Data set that they come from.
        license: Its licence, as the row states it.
        safer: Index of the answer that people found safer, where they were asked.
    """

    question: str
    answers: tuple[Answer, ...]
    source: str
    license: str
    safer: int | None = None

    @property
    def group(self) -> str:
        """Records with the same question belong to the same side of a split."""
        return normalise(self.question) or normalise(self.answers[0].text)[:200]

    @property
    def ranked(self) -> tuple[int, int] | None:
        """Indices of the harmless and of the harmful answer; None unless there is one of each."""
        labels = [answer.harmful for answer in self.answers]
        return (labels.index(False), labels.index(True)) if len(set(labels)) == 2 else None


def read_labelled(
    path: Path, *, form: Form | None = None, columns: Mapping[str, str] | None = None
) -> tuple[list[LabelledAnswers], Form]:
    """Read a file of labelled answers; JSON Lines, JSON, CSV or Parquet, plain or compressed.

    Args:
        path: The file.
        form: Its form; None: told from the fields of its first record.
        columns: Names of the fields of a file of pairs: ``question``, ``accepted`` (harmless) and
            ``rejected`` (harmful) to the names in the file.

    Returns:
        The records, and the form in which they were read.

    Raises:
        ConfigurationError: If the file is not in that form; names the place, and never quotes a text.
    """
    renamed = _renaming(columns)
    if renamed and form not in (None, "pairs"):
        raise ConfigurationError(f"columns are for files of pairs, and the form {form!r} was asked for")
    found: Form | None = "pairs" if renamed else form
    records = []
    for place, raw in read_records(path):
        record = {**raw, **{ours: raw.get(theirs) for ours, theirs in renamed.items()}}
        found = found or detect_form(record, where=str(path))
        try:
            records.append(_FORMS[found].read(record, path))
        except _MalformedError as error:
            raise ConfigurationError(f"{path}, {place}: not in the form {found!r}: {error}") from error
    if found is None:
        raise ConfigurationError(f"{path} holds no records")
    return records, found


def detect_form(record: Mapping[str, Any], *, where: str = "the record") -> Form:
    """The form of a record, by its fields.

    Raises:
        ConfigurationError: If it has the fields of none.

    Example:
        >>> detect_form({"prompt": "Tea?", "response": "Yes.", "is_safe": True})
        'beavertails'
    """
    for name, form in _FORMS.items():
        if form.fields <= record.keys():
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(form.fields))}" for name, form in _FORMS.items())
    raise ConfigurationError(
        f"{where} is in no form that is known ({known}). Files of pairs with other names are read with "
        "columns question=..., accepted=..., rejected=..."
    )


def parse_columns(text: str) -> dict[str, str]:
    """``question=prompt,accepted=chosen,rejected=other`` as a mapping.

    Raises:
        ConfigurationError: If it is none.

    Example:
        >>> parse_columns("question=prompt,accepted=good,rejected=bad")
        {'question': 'prompt', 'accepted': 'good', 'rejected': 'bad'}
    """
    pairs = [entry.partition("=") for entry in text.split(",")]
    if any(not (name.strip() and equals and value.strip()) for name, equals, value in pairs):
        raise ConfigurationError(f"columns must read question=NAME,accepted=NAME,rejected=NAME, not {text!r}")
    columns = {name.strip(): value.strip() for name, _, value in pairs}
    _renaming(columns)
    return columns


def joined(records: Iterable[LabelledAnswers]) -> list[LabelledAnswers]:
    """Put single answers to the same question together, a harmless one with a harmful one; the rest stays single."""
    result: list[LabelledAnswers] = []
    waiting: dict[tuple[str, str], list[int]] = defaultdict(list)  # places in result of singles without a partner
    for record in records:
        key = (record.source, normalise(record.question))
        partner = None
        if len(record.answers) == 1 and key[1]:
            others = waiting[key]
            partner = next((at for at in others if result[at].answers[0].harmful != record.answers[0].harmful), None)
            if partner is None:
                others.append(len(result))
            else:
                others.remove(partner)
        if partner is None:
            result.append(record)
        else:
            result[partner] = replace(result[partner], answers=(*result[partner].answers, *record.answers))
    return result


def detox_pairs(records: Iterable[LabelledAnswers]) -> tuple[list[DetoxPair], Counter[str]]:
    """What a detoxifier learns from them, and how many teach it nothing for what reason.

    Of two answers one of which is harmful, it learns to write the other one. Where both are harmful, it
    learns to refuse, as in the paper's code, but with more than one sentence; the one that
    people found less safe is what it is shown.
    """
    pairs: list[DetoxPair] = []
    left_out: Counter[str] = Counter()
    for record in joined(records):
        if len(record.answers) == 1:
            left_out["a single answer"] += 1
            continue
        if record.ranked is not None:
            harmless, harmful = record.ranked
            target = record.answers[harmless].text
        elif record.answers[0].harmful:
            harmful = 1 if record.safer == 0 else 0
            target = _refusal(record.question or record.answers[0].text)
        else:
            left_out["both answers are harmless"] += 1
            continue
        pairs.append(DetoxPair(record.source, record.license, record.question, record.answers[harmful].text, target))
    return pairs, left_out


def _refusal(text: str) -> str:
    """The same text always gets the same one."""
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return REFUSALS[int.from_bytes(digest[:4], "big") % len(REFUSALS)]


class _MalformedError(ValueError):
    """What is wrong with a record; quotes no text of it."""


def _renaming(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Our names of the fields of a pair, to those in the file."""
    if not columns:
        return {}
    ours = {"question": "question", "accepted": "harmless_response", "rejected": "harmful_response"}
    if unknown := sorted(set(columns) - set(ours)):
        raise ConfigurationError(f"there is no column {unknown[0]!r}: there are {', '.join(ours)}")
    if missing := sorted({"accepted", "rejected"} - set(columns)):
        raise ConfigurationError(f"columns must name the field of {missing[0]!r}")
    return {ours[name]: theirs for name, theirs in columns.items()}


def _text(record: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    value = record.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise _MalformedError(f"{name!r} must be a text, not {type(value).__name__}")
    return value


def _flag(record: Mapping[str, Any], name: str) -> bool:
    value = record.get(name)
    if not isinstance(value, bool):  # "false" would count as true, null as false
        raise _MalformedError(f"{name!r} must be true or false, not {type(value).__name__}")
    return value


def _origin(record: Mapping[str, Any], path: Path, licence: str = "not stated") -> tuple[str, str]:
    return str(record.get("source") or path.name.split(".")[0]), str(record.get("license") or licence)


def _own(record: Mapping[str, Any], path: Path) -> LabelledAnswers:
    description = _text(record, "image_desc", optional=True)
    question = question_with_images(_text(record, "question", optional=True), [description] if description else [])
    answer = Answer(_text(record, "response"), _flag(record, "harmful"))
    return LabelledAnswers(question or "", (answer,), *_origin(record, path))


def _pairs(record: Mapping[str, Any], path: Path) -> LabelledAnswers:
    answers = (Answer(_text(record, "harmless_response"), False), Answer(_text(record, "harmful_response"), True))
    return LabelledAnswers(_text(record, "question", optional=True), answers, *_origin(record, path), safer=0)


def _pku_saferlhf(record: Mapping[str, Any], path: Path) -> LabelledAnswers:
    answers = tuple(
        Answer(_text(record, f"response_{index}"), not _flag(record, f"is_response_{index}_safe")) for index in (0, 1)
    )
    safer = record.get("safer_response_id")
    if safer not in (0, 1) or isinstance(safer, bool):
        raise _MalformedError("'safer_response_id' must be 0 or 1")
    return LabelledAnswers(_text(record, "prompt"), answers, *_origin(record, path, _PKU_LICENCE), safer=safer)


def _beavertails(record: Mapping[str, Any], path: Path) -> LabelledAnswers:
    answer = Answer(_text(record, "response"), not _flag(record, "is_safe"))
    return LabelledAnswers(_text(record, "prompt"), (answer,), *_origin(record, path, _PKU_LICENCE))


_PKU_LICENCE = "CC-BY-NC-4.0, as PKU-SafeRLHF and BeaverTails are published"


@dataclass(frozen=True, slots=True)
class _Form:
    fields: frozenset[str]
    read: Callable[[Mapping[str, Any], Path], LabelledAnswers]


_FORMS: Mapping[Form, _Form] = {
    "pku-saferlhf": _Form(
        frozenset(
            {
                "prompt",
                "response_0",
                "response_1",
                "is_response_0_safe",
                "is_response_1_safe",
                "safer_response_id",
            }
        ),
        _pku_saferlhf,
    ),
    "beavertails": _Form(frozenset({"prompt", "response", "is_safe"}), _beavertails),
    "pairs": _Form(frozenset({"harmful_response", "harmless_response"}), _pairs),
    "own": _Form(frozenset({"response", "harmful"}), _own),
}


def label_counts(records: Sequence[LabelledAnswers]) -> list[dict[str, Any]]:
    """Per source: ``source``, ``license``, ``questions``, ``answers``, ``harmful``; for the card."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.source, record.license].update(
            questions=1, answers=len(record.answers), harmful=sum(answer.harmful for answer in record.answers)
        )
    return [{"source": source, "license": licence, **count} for (source, licence), count in sorted(counts.items())]
