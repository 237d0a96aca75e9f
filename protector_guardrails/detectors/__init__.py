"""Harm detectors: what judges a response."""

from __future__ import annotations

from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.models import EMBEDDED_DETECTOR, load_manifest
from protector_guardrails.models.presets import PRESETS
from protector_guardrails.policy import Policy

__all__ = ["HarmDetector", "check_detector", "check_thresholds", "resolve_detector", "resolve_policy"]

_PRESETS = tuple(name for name, preset in PRESETS.items() if preset.kind == "detector")
_KNOWN = ", ".join(repr(name) for name in ("embedded", *_PRESETS))


def resolve_detector(detector: str | HarmDetector) -> HarmDetector:
    """The detector of that name, or the one given.

    ``"embedded"`` is loaded at its first use and shared within the process.

    Raises:
        ConfigurationError: If it is neither a known name nor a :class:`HarmDetector`.
    """
    if isinstance(detector, HarmDetector):
        return detector
    if detector == "embedded":
        from protector_guardrails.detectors.embedded import EmbeddedDetector

        return EmbeddedDetector.shared()
    if detector in _PRESETS:
        from protector_guardrails.detectors.transformers import TransformersDetector

        return TransformersDetector.shared(detector)
    raise ConfigurationError(f"unknown detector {detector!r}: use {_KNOWN}, or an instance of HarmDetector")


def resolve_policy(policy: Policy, detector: HarmDetector) -> Policy:
    """The policy with the detector's own numbers in place of names of thresholds.

    Raises:
        ConfigurationError: If the detector has no threshold of that name, or never tells a category that has one.
    """
    return policy.resolved(detector.thresholds, detector=detector.name, categories=detector.categories)


def check_detector(detector: object) -> None:
    """Refuse what no detector can be made of, without loading one.

    Raises:
        ConfigurationError: If it is neither a known name nor a :class:`HarmDetector`.
    """
    if isinstance(detector, HarmDetector) or detector in ("embedded", *_PRESETS):  # loaded when first used
        return
    if isinstance(detector, str):
        resolve_detector(detector)
    raise ConfigurationError(f"detector is a {type(detector).__name__}: use {_KNOWN}, or an instance of HarmDetector")


def check_thresholds(policy: Policy, detector: str | HarmDetector) -> None:
    """Refuse a policy with a threshold or a category that the detector does not know, without loading the detector.

    A :class:`~protector_guardrails.Protector` finds out by itself; this is for what makes one later.

    Raises:
        ConfigurationError: If it has no threshold of that name, or never tells a category that has one.
        WeightsError: If the embedded detector's names are asked for and cannot be read.
    """
    if isinstance(detector, HarmDetector):
        resolve_policy(policy, detector)
    elif detector == "embedded" and not isinstance(policy.threshold, float):
        manifest = load_manifest(EMBEDDED_DETECTOR, verify=False)
        policy.resolved(manifest.thresholds, detector=detector, categories=manifest.categories)
    else:
        policy.resolved({}, detector=detector)
