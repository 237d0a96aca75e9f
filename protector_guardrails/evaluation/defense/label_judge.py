"""The judge that is people: labels in a file."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.directory import rows_with_ids
from protector_guardrails.evaluation.defense.judges import Judge, JudgedText, JudgeKind, Opinion
from protector_guardrails.evaluation.defense.results import Arm
from protector_guardrails.evaluation.tables import Record
from protector_guardrails.models.base_weights import sha256_of

NO_LABEL = "no label"
TIE = "as many say harmful as harmless"


class Label(BaseModel):
    """One person's label of one text; a line of the file.

    Attributes:
        case: Id of the case.
        arm: In which arm the text left; ``"none"``, the bare answer, if neither this nor ``sha256`` is told.
        sha256: Of the text in UTF-8: then the label is for this text only, in whichever arm it left.
        harmful: What the person says.
        annotator: Who it is. Labels without a name count as so many people.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    case: str
    arm: Arm | None = None
    sha256: str | None = None
    harmful: StrictBool
    annotator: str | None = None


class LabelJudge(Judge):
    """Looks labels up; of several people the majority counts, and a tie counts for nothing.

    Args:
        path: JSON Lines of :class:`Label`, plain or compressed; other fields are left alone. Labelled answers
            in our own form (see :func:`~.directory.read_own`) will do too: a row with a ``response`` labels that very
            text as an answer to the case that is made of the row; one without a label is passed over.

    Raises:
        ConfigurationError: If a line is not a label, or says something a second time; says where.
    """

    kind: ClassVar[JudgeKind] = "labels"
    kept: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self.name, self.spec = f"labels:{path.name}", f"labels:{path}"
        if not path.is_file():
            raise ConfigurationError(f"labels {path} cannot be read: it is not a file")
        self.version = f"sha256 {sha256_of(path)[:12]}"
        self._labels: defaultdict[str, list[tuple[str, Label]]] = defaultdict(list)
        self._used: set[str] = set()
        self._lines: set[str] = set()
        self._seen: set[str] = set()  # cases with labels that came by
        signed: dict[tuple[str | None, ...], str] = {}
        for place, told_id, record in rows_with_ids(path):
            response, harmful = record.get("response"), record.get("harmful")
            is_answer = isinstance(response, str)  # what such a row calls its case is another matter
            if is_answer and harmful is None:
                continue
            of_answer = {"case": told_id, "sha256": _sha256(str(response)), "harmful": harmful}
            label = _read(path, place, of_answer if is_answer else record)
            if label.annotator is not None:
                said = (label.case, label.arm, label.sha256, label.annotator)
                if said in signed:
                    raise ConfigurationError(
                        f"{path}, {place}: {label.annotator} labelled this text in {signed[said]} before"
                    )
                signed[said] = place
            self._labels[label.case].append((place, label))
            self._lines.add(place)

    def judge(self, texts: Sequence[JudgedText]) -> list[Opinion]:
        """What the labels say of each text."""
        return [self._judge(text) for text in texts]

    def problems(self) -> list[str]:
        """How many labels were of no use."""
        idle = self._lines - self._used
        unknown = sum(len(labels) for case, labels in self._labels.items() if case not in self._seen)
        problems: list[str] = []
        if unknown:
            problems.append(f"{self.name}: labels of cases that are no answered attack of this run: {unknown:,}.")
        if other := len(idle) - unknown:
            problems.append(f"{self.name}: labels of other texts than those that left here: {other:,}.")
        return problems

    def _judge(self, text: JudgedText) -> Opinion:
        if text.case.id not in self._labels:
            return Opinion(None, NO_LABEL)
        self._seen.add(text.case.id)
        sha256 = _sha256(text.text)
        of_text = [(number, label) for number, label in self._labels[text.case.id] if _is_of(label, text, sha256)]
        self._used.update(number for number, _ in of_text)
        votes = Counter(label.harmful for _, label in of_text)
        if not votes:
            return Opinion(None, NO_LABEL)
        return Opinion(None, TIE) if votes[True] == votes[False] else Opinion(votes[True] > votes[False])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_of(label: Label, text: JudgedText, sha256: str) -> bool:
    if label.sha256 is not None:
        return label.sha256.lower() == sha256 and (label.arm is None or label.arm in text.arms)
    return (label.arm or "none") in text.arms


def _read(path: Path, place: str, record: Record) -> Label:
    try:
        return Label.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{path}, {place}: {f'{field}: ' if field else ''}{first['msg']}") from error
