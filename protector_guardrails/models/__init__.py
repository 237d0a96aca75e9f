"""The weights that ship with the package, and what is known about them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protector_guardrails.errors import WeightsError
from protector_guardrails.models.base_weights import sha256_of

EMBEDDED_DETECTOR = Path(__file__).parent / "embedded_detector"
"""Folder of the embedded detector: model.onnx, tokenizer.json, detector.json, MODEL_CARD.md."""

MANIFEST = "detector.json"
CARD = "MODEL_CARD.md"


class DetectorManifest(BaseModel):
    """What ``detector.json`` says: how to encode, how to calibrate, which files belong to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    max_tokens: int = Field(ge=8)
    question_tokens: int = Field(ge=0)
    overlap: int = Field(ge=0)
    temperature: float = Field(gt=0)
    bias: float
    threshold: float = Field(default=0.5, ge=0, le=1)
    sha256: dict[str, str]
    metrics: dict[str, Any] = {}

    def calibrated(self, logit: float) -> float:
        """P(harm) of a raw logit: ``sigmoid(logit / temperature + bias)``."""
        value = logit / self.temperature + self.bias
        return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def load_manifest(folder: Path, *, verify: bool = True) -> DetectorManifest:
    """Read a detector's manifest and check that its files are the ones it was written for.

    Args:
        folder: Folder of the detector.
        verify: Compare each file's sha256 with the manifest's.

    Raises:
        WeightsError: If a file is missing, malformed or different.
    """
    path = folder / MANIFEST
    try:
        manifest = DetectorManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"no detector at {folder}: {path.name} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise WeightsError(f"{path} is not a detector's manifest: {error.errors()[0]['msg']}") from error
    if verify:
        for name, expected in manifest.sha256.items():
            try:
                found = sha256_of(folder / name)
            except OSError as error:
                raise WeightsError(
                    f"{folder / name} cannot be read ({error.strerror}): reinstall the package"
                ) from error
            if found != expected:
                raise WeightsError(
                    f"{folder / name} has sha256 {found}, the manifest says {expected}: reinstall the package"
                )
    return manifest


def embedded_detector_card() -> str:
    """The model card of the embedded detector, Markdown."""
    return (EMBEDDED_DETECTOR / CARD).read_text(encoding="utf-8")
