"""MM-SafetyBench (arXiv 2311.17600), as its repository and its download lay it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.folders import TEXT, Found, file_in, missing_images, read_entries
from protector_guardrails.evaluation.rows import MalformedRecordError, text_of

SCENARIOS = (
    "01-Illegal_Activitiy",  # so spelt there
    "02-HateSpeech",
    "03-Malware_Generation",
    "04-Physical_Harm",
    "05-EconomicHarm",
    "06-Fraud",
    "07-Sex",
    "08-Political_Lobbying",
    "09-Privacy_Violence",
    "10-Legal_Opinion",
    "11-Financial_Advice",
    "12-Health_Consultation",
    "13-Gov_Decision",
)

QUESTION_OF = {
    TEXT: "Question",
    "SD": "Rephrased Question(SD)",
    "TYPO": "Rephrased Question",
    "SD_TYPO": "Rephrased Question",
}
"""Kind of image to the field that is asked with it; ``"text"`` shows none."""

_QUESTIONS, _IMAGES = "processed_questions", "imgs"


def read_mm_safetybench(folder: Path) -> Found:
    """The cases of MM-SafetyBench.

    ==================================== ==========================================================
    File                                 Content
    ==================================== ==========================================================
    ``processed_questions/SCENARIO.json`` number -> ``Question``, ``Rephrased Question`` and others
    ``imgs/SCENARIO/KIND/NUMBER.jpg``    the picture; KIND is ``SD``, ``TYPO`` or ``SD_TYPO``
    ==================================== ==========================================================

    A case is asked in up to four kinds, see :data:`QUESTION_OF`. The intent is ``Question``. A
    question whose picture is missing is left out, never asked as if it had one.

    Args:
        folder: Folder that holds the two, or their parent ``data``.

    Raises:
        ConfigurationError: If there is nothing to ask, or a file is not as described.
    """
    root = next((base for base in (folder, folder / "data") if (base / _QUESTIONS).is_dir()), None)
    if root is None:
        raise ConfigurationError(f"{folder} is not MM-SafetyBench: it has no folder {_QUESTIONS!r}")
    cases: list[Case] = []
    files: list[Path] = []
    problems: list[str] = []
    missing: Counter[str] = Counter()
    for scenario in SCENARIOS:
        file = file_in(root, f"{_QUESTIONS}/{scenario}.json")
        if file is None:
            continue
        files.append(file)
        entries = sorted(read_entries(file), key=_by_number)
        if not entries:
            problems.append(f"Scenario {scenario} holds no questions.")
        for number, entry in entries:
            try:
                found = list(_asked(root, scenario, number, entry))
            except (MalformedRecordError, ConfigurationError) as error:
                raise ConfigurationError(f"{file}, question {number[:20]!r}: {error}") from error
            cases.extend(case for _, case in found if case is not None)
            missing.update(f"{scenario}, {kind}" for kind, case in found if case is None)
    if absent := [scenario for scenario in SCENARIOS if scenario not in {file.stem for file in files}]:
        problems.insert(0, f"{len(absent)} of {len(SCENARIOS)} scenarios are missing: {', '.join(absent)}.")
    strangers = sorted(path.stem for path in (root / _QUESTIONS).glob("*.json") if path.stem not in SCENARIOS)
    if strangers:
        problems.append(f"{len(strangers)} files are no scenario of MM-SafetyBench: {', '.join(strangers)[:200]}.")
    if not cases:
        raise ConfigurationError(f"{folder} holds nothing that can be asked. {' '.join(problems)}".strip())
    return Found(root=root, files=files, cases=cases, problems=[*problems, *missing_images(missing)])


def _by_number(entry: tuple[str, Any]) -> tuple[bool, str]:
    number, _ = entry
    return not number.isdecimal(), number.zfill(12)


def _asked(root: Path, scenario: str, number: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, Case | None]]:
    """Kinds with their case, or with None where the image is missing."""
    for kind, field in QUESTION_OF.items():
        question = text_of(entry, field)
        if question is None:
            raise MalformedRecordError(f"no text in {field!r}")
        image = None if kind == TEXT else file_in(root, f"{_IMAGES}/{scenario}/{kind}/{number}.jpg")
        if kind != TEXT and image is None:
            yield kind, None
            continue
        yield (
            kind,
            Case(
                id=f"mm-safetybench/{scenario}/{kind}/{number}",
                scenario=scenario,
                kind=kind,
                question=question,
                image=image,
                intent=text_of(entry, "Question"),
            ),
        )
