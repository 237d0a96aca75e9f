"""Detectors as they are named on the command line, and what identifies them in results."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protector_guardrails.detectors import resolve_detector
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.evaluation.importing import import_object
from protector_guardrails.models.presets import PRESETS


@dataclass(frozen=True, slots=True)
class NamedDetector:
    """A detector and the words it was asked for with.

    Attributes:
        spec: ``"embedded"`` or an import path.
        detector: The detector.
        weights: sha256 of each file of its weights; empty where it does not tell them.
    """

    spec: str
    detector: HarmDetector
    weights: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Changes when the detector's name, weights or source code do: scores of another one are never taken over.

        A detector that keeps its weights elsewhere should tell them, see :func:`weights_of`.
        """
        settings = dict(getattr(self.detector, "settings", {}))
        source = _source(type(self.detector))
        parts = [self.spec, self.detector.name, dict(sorted(self.weights.items())), settings, source]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def named(spec: str, detector: HarmDetector) -> NamedDetector:
    """A detector with its name in results and the hashes of its weights."""
    return NamedDetector(spec, detector, weights_of(detector))


def load_detector(spec: str) -> NamedDetector:
    """The detector behind ``"embedded"`` or ``"package.module:object"``.

    The object is a :class:`HarmDetector`, or a class or function that gives one without
    arguments. Modules are looked for in the current folder too.

    Raises:
        ConfigurationError: If there is none; says what is wrong with the path.
    """
    if ":" not in spec:
        return named(spec, resolve_detector(_known(spec)))
    found = import_object(spec, what="detector")
    if not isinstance(found, HarmDetector):
        if not callable(found):
            raise ConfigurationError(f"detector {spec!r} is {type(found).__name__}, not a HarmDetector")
        try:
            found = found()
        except Exception as error:
            raise ConfigurationError(f"detector {spec!r} could not be made: {type(error).__name__}: {error}") from error
    if not isinstance(found, HarmDetector):
        raise ConfigurationError(f"detector {spec!r} gives {type(found).__name__}, not a HarmDetector")
    return named(spec, found)


def weights_of(detector: HarmDetector) -> dict[str, str]:
    """File name to sha256 of a detector's weights.

    The embedded detector's manifest names them; any other detector can have an attribute
    ``weights_sha256`` that does.
    """
    told = getattr(getattr(detector, "manifest", None), "sha256", None) or getattr(detector, "weights_sha256", None)
    return {str(name): str(digest) for name, digest in told.items()} if isinstance(told, Mapping) else {}


def _known(spec: str) -> str:
    if spec != "embedded" and spec not in PRESETS:
        raise ConfigurationError(
            f"unknown detector {spec!r}: use 'embedded', or package.module:object of a HarmDetector"
        )
    return spec


def _source(kind: type) -> str:
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):  # written in a console or a notebook
        return ""
    if path is None or not Path(path).is_file():
        return ""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
