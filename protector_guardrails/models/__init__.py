"""The weights that ship with the package, and what is known about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protector_guardrails.errors import WeightsError
from protector_guardrails.models.hashing import sha256_of
from protector_guardrails.types import HarmCategory

EMBEDDED_DETECTOR = Path(__file__).parent / "embedded_detector"
"""Folder of the embedded detector: model.onnx, tokenizer.json, detector.json, MODEL_CARD.md."""

EMBEDDED_DETOXIFIER = Path(__file__).parent / "embedded_detoxifier"
"""Folder of the embedded detoxifier: a LoRA adapter, prompt_template.json, detoxifier.json, MODEL_CARD.md."""

MANIFEST = "detector.json"
DETOXIFIER_MANIFEST = "detoxifier.json"
CARD = "MODEL_CARD.md"

Probability = Annotated[float, Field(ge=0, le=1)]

Manifest = TypeVar("Manifest", "DetectorManifest", "DetoxifierManifest")


class DetectorManifest(BaseModel):
    """What ``detector.json`` says: how to encode, how to calibrate, which files belong to it.

    Attributes:
        name: Name of the detector.
        version: Its version.
        max_tokens: Tokens of a window, special tokens included.
        question_tokens: Most tokens of the question in a window.
        overlap: Tokens that consecutive windows of a passage share.
        temperature: Divides the pooled logit of harm.
        bias: Is then added to it.
        threshold: Score from which the detector's own verdicts are harmful.
        thresholds: Names of further thresholds, such as ``"fpr-1%"``, to scores; a policy can be given the name.
        categories: Harm categories in the order of the columns of the output ``category_logits``; empty where the
            network has no such output.
        category_temperature: Divides the pooled logits of the categories.
        category_floor: Least P(category | harm) with which a category is told.
        normalise: Whether the texts were normalised before they were encoded, in training, in calibration and so
            in use.
        sha256: File name to sha256 of the detector's files.
        metrics: What was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    max_tokens: int = Field(ge=8)
    question_tokens: int = Field(ge=0)
    overlap: int = Field(ge=0)
    temperature: float = Field(gt=0)
    bias: float
    threshold: float = Field(default=0.5, ge=0, le=1)
    thresholds: dict[str, Probability] = {}
    categories: tuple[str, ...] = ()
    category_temperature: float = Field(default=1.0, gt=0)
    category_floor: float = Field(default=0.5, ge=0, le=1)
    normalise: bool = False
    sha256: dict[str, str]
    metrics: dict[str, Any] = {}

    @field_validator("categories")
    @classmethod
    def _known(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(categories)) < len(categories):
            raise ValueError("a category is named twice")
        if unknown := [name for name in categories if name not in set(HarmCategory)]:
            raise ValueError(f"no such harm category: {', '.join(unknown)}")
        return categories

    def calibrated(self, logit: float) -> float:
        """P(harm) of a raw logit: ``sigmoid(logit / temperature + bias)``."""
        value = logit / self.temperature + self.bias
        return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


class DetoxifierManifest(BaseModel):
    """What ``detoxifier.json`` says: the base, how to write, which files belong to it.

    Attributes:
        name: Name of the detoxifier.
        version: Its version.
        base: Repository of the base weights on the model hub.
        base_sha256: sha256 of the file of base weights that it was trained and measured on.
        max_new_tokens: Most tokens of a rewrite.
        max_prompt_tokens: Most tokens of a prompt.
        max_echo: Share of the response that may come back.
        sha256: File name to sha256 of the adapter's files.
        metrics: What was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    base: str
    base_sha256: str
    max_new_tokens: int = Field(ge=1)
    max_prompt_tokens: int = Field(ge=1)
    max_echo: float = Field(ge=0, le=1)
    sha256: dict[str, str]
    metrics: dict[str, Any] = {}


def load_manifest(folder: Path, *, verify: bool = True) -> DetectorManifest:
    """Read a detector's manifest and check that its files are the ones it was written for.

    Args:
        folder: Folder of the detector.
        verify: Compare each file's sha256 with the manifest's.

    Raises:
        WeightsError: If a file is missing, malformed or different.
    """
    manifest = _read(folder / MANIFEST, DetectorManifest, "detector")
    if verify:
        _verify(folder, manifest.sha256)
    return manifest


def load_detoxifier_manifest(folder: Path, *, verify: bool = True) -> DetoxifierManifest:
    """Read a detoxifier's manifest and check that its files are the ones it was written for.

    Args:
        folder: Folder of the detoxifier.
        verify: Compare each file's sha256 with the manifest's.

    Raises:
        WeightsError: If a file is missing, malformed, different or not vouched for.
    """
    manifest = _read(folder / DETOXIFIER_MANIFEST, DetoxifierManifest, "detoxifier")
    for name in ("adapter_config.json", "adapter_model.safetensors", "prompt_template.json"):
        if name not in manifest.sha256:
            raise WeightsError(f"{folder / DETOXIFIER_MANIFEST} has no sha256 of {name}: export the detoxifier again")
    if verify:
        _verify(folder, manifest.sha256)
    return manifest


def _read(path: Path, kind: type[Manifest], what: str) -> Manifest:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"no {what} at {path.parent}: {path.name} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise WeightsError(f"{path} is not a {what}'s manifest: {error.errors()[0]['msg']}") from error


def _verify(folder: Path, sha256: Mapping[str, str]) -> None:
    for name, expected in sha256.items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise WeightsError(f"{folder / name} cannot be read ({error.strerror}): reinstall the package") from error
        if found != expected:
            raise WeightsError(
                f"{folder / name} has sha256 {found}, the manifest says {expected}: reinstall the package"
            )


def embedded_detector_card() -> str:
    """The model card of the embedded detector, Markdown."""
    return (EMBEDDED_DETECTOR / CARD).read_text(encoding="utf-8")


def embedded_detoxifier_card() -> str:
    """The model card of the embedded detoxifier, Markdown.

    Raises:
        WeightsError: If this package comes without it.
    """
    try:
        return (EMBEDDED_DETOXIFIER / CARD).read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"no detoxifier at {EMBEDDED_DETOXIFIER}: {CARD} cannot be read") from error
