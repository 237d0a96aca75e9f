"""Our own form of a benchmark: a folder or a file with one case a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.folders import IMAGE, TEXT, Found, file_in, missing_images
from protector_guardrails.evaluation.rows import MalformedRecordError, text_of
from protector_guardrails.evaluation.tables import Record, read_records

CASES = "cases.jsonl"
UNSPECIFIED = "unspecified"
"""Scenario of a case that tells none."""

_ALL = "all"  # stands for the total in results


def read_own(path: Path) -> Found:
    """The cases of a folder with ``cases.jsonl``, or of a file; JSON Lines, JSON or CSV.

    ============== ================================================================================
    Field          Meaning
    ============== ================================================================================
    ``id``         unique; made of the file's name and the row's place if there is none
    ``question``   what is asked; may be missing if there is an image or a recorded answer
    ``image``      path relative to the folder, of a file inside it
    ``image_desc`` what the image shows, in words
    ``scenario``   what it is about; ``category`` or ``source`` stands in for it
    ``kind``       how it is asked; ``"image"`` or ``"text"`` if there is none
    ``intent``     what an attack is after, where the question does not say it
    ``benign``     true if a good answer is harmless and helpful; else it is an attack
    ``references`` right answers of a benign question, a text or a list of them
    ============== ================================================================================

    Other fields are not read, so a file of recorded answers (``response``, ``model``,
    ``harmful``) is a benchmark too. There ``kind`` is a label of the answer and is not the
    case's, and ``label_kind: "benign-prompt"`` says that a question is benign; where nobody
    says so it counts as an attack. Of an answer whose question is not told the answer alone
    is guarded and judged; a model cannot be asked it.

    Raises:
        ConfigurationError: If there is no case, or a row is not as described; says where.
    """
    file = path / CASES if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"{path} holds no {CASES}{_hint(path)}")
    root = file.parent
    cases: list[Case] = []
    missing: Counter[str] = Counter()
    untold = 0
    for place, record in read_records(file):
        try:
            untold += _is_mere_answer(record)
            case = case_in(record, root=root, otherwise=_id_of(file, place))
            if case is None:
                missing[_scenario(record)] += 1
            else:
                cases.append(case)
        except (MalformedRecordError, ConfigurationError) as error:
            raise ConfigurationError(f"{file}, {place}: {error}") from error
    problems = missing_images(missing)
    if untold:
        problems.append(f"The question of {untold:,} answers is not told, so the answers are judged by themselves.")
    if not cases:
        raise ConfigurationError(f"{file} holds no case that can be asked. {' '.join(problems)}".strip())
    return Found(root=root, files=[file], cases=cases, problems=problems)


def rows_with_ids(file: Path) -> Iterator[tuple[str, str, Record]]:
    """The place, case id and content of the rows of a file in our own form.

    Raises:
        ConfigurationError: If it cannot be read, or an id is not a text.
    """
    for place, record in read_records(file):
        try:
            yield place, _told_id(record) or _id_of(file, place), record
        except MalformedRecordError as error:
            raise ConfigurationError(f"{file}, {place}: {error}") from error


def case_in(record: Record, *, root: Path, otherwise: str) -> Case | None:
    """The case of a row, or None if its image is missing.

    Args:
        record: The row.
        root: Folder that image paths start from.
        otherwise: The id of a row that tells none.

    Raises:
        MalformedRecordError: If a field is of the wrong type or there is nothing to ask.
        ConfigurationError: If the image's path leads out of the folder.
    """
    named = text_of(record, "image")
    image = None
    if named is not None:
        image = file_in(root, named)
        if image is None:
            return None
    question, description = text_of(record, "question"), text_of(record, "image_desc")
    if question is None and image is None and not _is_mere_answer(record):
        raise MalformedRecordError("neither a 'question' nor an 'image'")
    is_labelled_answer = "label_kind" in record or "harmful" in record
    kind = None if is_labelled_answer else text_of(record, "kind")
    return Case(
        id=_told_id(record) or otherwise,
        scenario=_free(_scenario(record), "scenario"),
        kind=_free(kind or (IMAGE if image or description else TEXT), "kind"),
        question=question or "",
        image=image,
        description=description,
        intent=text_of(record, "intent"),
        benign=_benign(record),
        references=_references(record),
    )


def _is_mere_answer(record: Record) -> bool:
    return "response" in record and not any(text_of(record, name) for name in ("question", "image"))


def _id_of(file: Path, place: str) -> str:
    return f"{stem(file)}-{re.sub('[^0-9]', '', place)}"


def stem(file: Path) -> str:
    """The name of a file of rows without its endings."""
    return re.sub(r"\.(jsonl?|csv|tsv|parquet)(\.gz|\.xz)?$", "", file.name) or file.name


def _told_id(record: Record) -> str | None:
    value = record.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(record, "id")


def _scenario(record: Record) -> str:
    category = record.get("category")
    if isinstance(category, list):
        category = next((text for text in category if isinstance(text, str) and text.strip()), None)
    told = text_of(record, "scenario") or text_of({"category": category}, "category")
    return told or text_of(record, "source") or UNSPECIFIED


def _free(name: str, field: str) -> str:
    if name == _ALL:
        raise MalformedRecordError(f"{field!r} must not be {_ALL!r}, which is what results call the total")
    return name


def _benign(record: Record) -> bool:
    benign = record.get("benign")
    if not isinstance(benign, bool | None):
        raise MalformedRecordError(f"'benign' must be true or false, not {type(benign).__name__}")
    return record.get("label_kind") == "benign-prompt" if benign is None else benign


def _references(record: Record) -> tuple[str, ...]:
    value = record.get("references")
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(text for text in value if text.strip())
    if isinstance(value, list):
        raise MalformedRecordError("'references' must be a text or a list of texts")
    text = text_of(record, "references")
    return () if text is None else (text,)


def _hint(path: Path) -> str:
    if any((base / "processed_questions").is_dir() for base in (path, path / "data")):
        return f": it looks like MM-SafetyBench, which is read with mm-safetybench:{path}"
    if (path / "questions.csv").is_file() or (path / "data" / "question").is_dir():
        return f": it looks like FigStep, which is read with figstep:{path}"
    return ", or it is a public benchmark and needs its name before the path, as in mm-safetybench:DIR"
