"""The checkpoints of the paper by name: where they are, what they are made for, how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from protector_guardrails.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published checkpoint and what has to be known to use it.

    Attributes:
        name: What it is called here.
        kind: What it does.
        model: Its repository on the hub; a LoRA adapter.
        base: Repository of the model that the adapter was trained on.
        polarity: What the logit of a detector stands for; None for a detoxifier.
        template: The text that a detector reads; None for a detoxifier.
        licence: What is known about the terms of use.
        source: Where these facts are from.
    """

    name: str
    kind: Literal["detector", "detoxifier"]
    model: str
    base: str
    polarity: Literal["harm", "safe"] | None = None
    template: str | None = None
    licence: str
    source: str


_PAPER = "MLLM-Protector (arXiv 2401.02906) and its repository pipilurj/MLLM-protector"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="paper-3b",
                kind="detector",
                model="renjiepi/protector_detector_3b_lora",
                base="openlm-research/open_llama_3b_v2",
                polarity="safe",
                template="response",
                licence="base: Apache-2.0; adapter: none stated, trained on PKU-SafeRLHF (CC-BY-NC-4.0) among others",
                source=_PAPER,
            ),
            Preset(
                name="paper-detoxifier-7b",
                kind="detoxifier",
                model="renjiepi/mllm_protector_detoxifier",
                base="meta-llama/Llama-2-7b-hf",
                licence="base: Llama 2 Community License, to be accepted on the hub; adapter: none stated",
                source=_PAPER,
            ),
        )
    }
)
"""Presets by name."""


def find_preset(name: str, *, kind: Literal["detector", "detoxifier"]) -> Preset:
    """The preset of that name.

    Raises:
        ConfigurationError: If there is none, or it is of the other kind.

    Example:
        >>> find_preset("paper-3b", kind="detector").polarity
        'safe'
    """
    found = PRESETS.get(name)
    if found is None or found.kind != kind:
        known = ", ".join(repr(preset.name) for preset in PRESETS.values() if preset.kind == kind)
        wrong = f"{name!r} is a {found.kind}" if found else f"there is no preset {name!r}"
        raise ConfigurationError(f"{wrong}: the presets for a {kind} are {known}")
    return found
