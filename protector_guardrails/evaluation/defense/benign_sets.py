"""Public sets of harmless questions with known answers: MM-Vet, MMMU, ScienceQA.

What a guard costs is measured on them. The forms are those that the sets' repositories and
public loaders of them describe; they were not tried on the files themselves. Where a field
is missing the error says which.
"""

from __future__ import annotations

import ast
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.folders import (
    IMAGE,
    TEXT,
    Found,
    file_in,
    missing_images,
    read_entries,
    read_json,
)
from protector_guardrails.evaluation.rows import MalformedRecordError, text_of
from protector_guardrails.evaluation.tables import read_records

_MOST_CHOICES = 26


def read_mm_vet(path: Path) -> Found:
    """MM-Vet (arXiv 2308.02490): ``mm-vet.json`` with ``images`` beside it.

    The file is an object of id -> ``imagename``, ``question``, ``answer``. An answer is
    one reference; what ``<AND>`` and ``<OR>`` in it mean is the accuracy rule's matter.

    Args:
        path: The folder, or the file in it.

    Raises:
        ConfigurationError: If it is not as described.
    """
    file = _file(path, "mm-vet.json")
    reader = _Reader(file, "mm-vet")
    for number, entry in read_entries(file):
        place = f"question {number[:20]!r}"
        answer = reader.text(entry, "answer", place)
        reader.add(
            place,
            number=number,
            scenario=_first(entry.get("capability")) or "MM-Vet",
            question=reader.text(entry, "question", place),
            image=f"images/{reader.text(entry, 'imagename', place)}",
            references=[answer],
        )
    return reader.found()


def read_mmmu(path: Path) -> Found:
    r"""MMMU (arXiv 2311.16502): questions in JSON or JSON Lines, with images as files.

    The set is published as Parquet with the images in it; they must be saved as files first. A
    row has ``id``, ``question``, ``options`` (a list, or a list written as a text), ``image_1``
    (a path relative to the file) and ``answer``: the letter of an option, or an open answer.
    Where a row has none, ``answer_dict_val.json`` of the set's evaluation code is looked for
    beside the file (id -> ``ground_truth``). Questions with a second image are left out.

    Args:
        path: The file, or a folder with ``questions.jsonl`` or ``questions.json``.

    Raises:
        ConfigurationError: If it is not as described.
    """
    file = _file(path, "questions.jsonl", "questions.json")
    reader = _Reader(file, "mmmu")
    answers = _answers_beside(reader)
    with_several = 0
    for place, record in read_records(file):
        number = reader.text(record, "id", place)
        if record.get("image_2"):
            with_several += 1
            continue
        choices = _options(record.get("options"))
        answer = record.get("answer", answers.get(number))
        if choices and isinstance(answer, str) and len(answer.strip()) == 1:
            references = reader.choice(choices, string.ascii_uppercase.find(answer.strip().upper()), place)
        else:
            references = _open_answers(answer)
        reader.add(
            place,
            number=number,
            scenario=_subject(number),
            question=_with_choices(reader.text(record, "question", place), choices),
            image=reader.optional(record, "image_1", place) or reader.optional(record, "image", place),
            references=references,
        )
    if with_several:
        reader.problems.append(f"{with_several:,} questions show more than one image and are left out.")
    return reader.found()


def read_scienceqa(path: Path, *, split: str = "test") -> Found:
    """ScienceQA (arXiv 2209.09513): ``problems.json`` and ``pid_splits.json``.

    The first is an object of id -> ``question``, ``choices``, ``answer`` (index of a choice),
    ``hint``, ``image`` (a file's name, or null); the second of split -> ids. Images are in
    ``SPLIT/ID/`` or ``images/SPLIT/ID/``.

    Args:
        path: Folder that holds them.
        split: Which questions.

    Raises:
        ConfigurationError: If it is not as described.
    """
    file, splits_file = _file(path, "problems.json"), _file(path, "pid_splits.json")
    splits, problems = read_json(splits_file), dict(read_entries(file))
    numbers = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(numbers, list):
        raise ConfigurationError(f"{splits_file} has no list of ids for the split {split!r}")
    reader = _Reader(file, "scienceqa", also=[splits_file])
    unknown = 0
    for number in map(str, numbers):
        entry, place = problems.get(number), f"question {number[:20]!r}"
        if entry is None:
            unknown += 1
            continue
        choices = _options(entry.get("choices"))
        hint, name = reader.optional(entry, "hint", place), reader.optional(entry, "image", place)
        question = _with_choices(reader.text(entry, "question", place), choices)
        folders = (f"{split}/{number}", f"images/{split}/{number}")
        images = [f"{folder}/{name}" for folder in folders] if name else []
        reader.add(
            place,
            number=number,
            scenario=reader.optional(entry, "subject", place) or "ScienceQA",
            question=f"{hint}\n{question}" if hint else question,
            image=next((image for image in images if reader.has(image, place)), images[0] if images else None),
            references=reader.choice(choices, entry.get("answer"), place),
        )
    if unknown:
        reader.problems.append(f"{unknown:,} ids of the split {split!r} have no question.")
    return reader.found()


BENIGN_SETS: dict[str, Callable[[Path], Found]] = {
    "mm-vet": read_mm_vet,
    "mmmu": read_mmmu,
    "scienceqa": read_scienceqa,
}


class _Reader:
    """Gathers the cases of one set; errors name its file."""

    def __init__(self, file: Path, name: str, *, also: Sequence[Path] = ()) -> None:
        self.file, self.name = file, name
        self.files = [file, *also]
        self.problems: list[str] = []
        self._cases: list[Case] = []
        self._missing: Counter[str] = Counter()

    def text(self, record: Mapping[str, Any], field: str, place: str) -> str:
        text = self.optional(record, field, place)
        if text is None:
            raise self._error(place, f"no text in {field!r}")
        return text

    def optional(self, record: Mapping[str, Any], field: str, place: str) -> str | None:
        try:
            return text_of(record, field)
        except MalformedRecordError as error:
            raise self._error(place, str(error)) from error

    def choice(self, choices: Sequence[str], answer: Any, place: str) -> list[str]:
        """The references of a question with choices: the right one's letter and text."""
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise self._error(place, f"'answer' is not one of the {len(choices)} choices")
        return [string.ascii_uppercase[answer], choices[answer]]

    def has(self, image: str, place: str) -> bool:
        """Whether there is such an image."""
        return self._image(image, place) is not None

    def add(
        self, place: str, *, number: str, scenario: str, question: str, image: str | None, references: Sequence[str]
    ) -> None:
        file = None if image is None else self._image(image, place)
        if image is not None and file is None:
            self._missing[scenario] += 1
            return
        self._cases.append(
            Case(
                id=f"{self.name}/{number}",
                scenario=scenario,
                kind=TEXT if file is None else IMAGE,
                question=question,
                image=file,
                benign=True,
                references=tuple(text for text in references if text),
            )
        )

    def found(self) -> Found:
        problems = [*self.problems, *missing_images(self._missing)]
        if not self._cases:
            raise ConfigurationError(f"{self.file} holds no question that can be asked. {' '.join(problems)}".strip())
        return Found(root=self.file.parent, files=self.files, cases=self._cases, problems=problems)

    def _image(self, image: str, place: str) -> Path | None:
        try:
            return file_in(self.file.parent, image)
        except ConfigurationError as error:
            raise self._error(place, str(error)) from error

    def _error(self, place: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self.file}, {place}: {what}")


def _file(path: Path, *names: str) -> Path:
    files = [path / name for name in names] if path.is_dir() else [path]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ConfigurationError(f"{path} has no file {' or '.join(names)}")
    return found


def _first(value: Any) -> str | None:
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) and value else None


def _answers_beside(reader: _Reader) -> dict[str, Any]:
    file = reader.file.parent / "answer_dict_val.json"
    if not file.is_file():
        return {}
    reader.files.append(file)
    return {number: entry.get("ground_truth") for number, entry in read_entries(file)}


def _open_answers(answer: Any) -> list[str]:
    """An open question's answers: a text, a number, several of them, or a list written as a text."""
    if isinstance(answer, str) and answer.lstrip().startswith("["):
        answer = _options(answer)
    several = answer if isinstance(answer, list) else [answer]
    return [str(one) for one in several if isinstance(one, str | int | float) and not isinstance(one, bool)]


def _options(value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return []
    return [str(option) for option in value][:_MOST_CHOICES] if isinstance(value, list) else []


def _with_choices(question: str, choices: Sequence[str]) -> str:
    if not choices:
        return question
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False))
    return f"{question}\n{listed}\nAnswer with the letter of the right choice."


def _subject(number: str) -> str:
    """The subject in an id such as ``validation_Art_Theory_12``."""
    match = re.fullmatch(r"(?:dev|validation|test)_(.+)_\d+", number)
    return match[1].replace("_", " ") if match else "MMMU"
