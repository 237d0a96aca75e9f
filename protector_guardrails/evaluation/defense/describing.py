"""Words for images that a benchmark does not describe, as a guard in use gets them from OCR or a captioner."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.images import UnreadableImageError, read_image
from protector_guardrails.evaluation.defense.kept import KeptLines, digest
from protector_guardrails.evaluation.importing import import_object
from protector_guardrails.models.base_weights import sha256_of

FOLDER = "descriptions"


class Describer:
    """Has a function say what images show; it is asked once per image, in this run and in those that resume it.

    Args:
        spec: Import path ``"package.module:function"`` of a function from the bytes of an image to words.
        folder: Where descriptions are kept, and taken from.

    Attributes:
        spec: The import path.
        failures: Why images are not described, with their number.

    Raises:
        ConfigurationError: If there is no such function.
    """

    def __init__(self, spec: str, *, folder: Path) -> None:
        self.spec = spec
        self.failures: Counter[str] = Counter()
        self._describe = _imported(spec)
        self._known: dict[Path, str | None] = {}
        header = {"describer": spec, "source": _source(self._describe)}
        self._kept = KeptLines(folder / FOLDER, header, _text_of)

    def described(self, case: Case) -> Case:
        """The case with words for its image, if it has one without words and there are any."""
        if case.image is None or case.description is not None:
            return case
        if case.image not in self._known:
            self._known[case.image] = self._words_for(case.image)
        return replace(case, description=self._known[case.image] or None)

    def problems(self) -> list[str]:
        """How many images could not be described, in sentences."""
        return [
            f"{self.spec} described {count:,} {'image' if count == 1 else 'images'} not: {why}."
            for why, count in self.failures.most_common()
        ]

    def _words_for(self, image: Path) -> str | None:
        try:
            data, _, _ = read_image(image)
            key = digest(sha256_of(image))
            words = self._kept.get(key)
            if words is None:
                words = self._describe(data)
                if not isinstance(words, str):
                    raise TypeError(f"{self.spec} gave {type(words).__name__}, not words")
                words = words.strip()
                self._kept.put([(key, {"words": words})])
        except UnreadableImageError as error:
            self.failures[str(error)] += 1
        except Exception as error:  # whatever the function raises; its message may quote a text
            self.failures[type(error).__name__] += 1
        else:
            return words
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.__exit__()


def _imported(spec: str) -> Callable[[bytes], Any]:
    if ":" not in spec:
        raise ConfigurationError(f"unknown describer {spec!r}: use package.module:function")
    found = import_object(spec, what="describer")
    if not callable(found):
        raise ConfigurationError(f"describer {spec!r} is {type(found).__name__}, not a function")
    describe: Callable[[bytes], Any] = found
    return describe


def _source(function: Callable[[bytes], Any]) -> str:
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):  # written in a console, or in C
        return ""
    return hashlib.sha256(source.encode()).hexdigest()


def _text_of(entry: Mapping[str, Any]) -> str:
    words = entry["words"]
    if not isinstance(words, str):
        raise TypeError("'words' must be a text")
    return words
