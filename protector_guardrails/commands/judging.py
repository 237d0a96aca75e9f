"""The guard behind ``check`` and ``score``: it judges, and lets everything through with its verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.policy import Policy
    from protector_guardrails.protector import Protector


def policy_for(threshold: float | None) -> Policy:
    """A policy that flags and sets no time limit, with a threshold from the command line.

    Raises:
        ConfigurationError: If the threshold is not a number in [0, 1].
    """
    from protector_guardrails.policy import Policy

    if threshold is None:
        return Policy(on_harm="flag", timeout_s=None)
    if not (math.isfinite(threshold) and 0.0 <= threshold <= 1.0):
        raise ConfigurationError(f"--threshold must be a number from 0 to 1, not {threshold:g}")
    return Policy(on_harm="flag", timeout_s=None, threshold=threshold)


def flagging_protector(threshold: float | None) -> Protector:
    """The embedded detector under :func:`policy_for`. An item that cannot be judged has no verdict, but an error."""
    policy = policy_for(threshold)
    from protector_guardrails.protector import Protector

    return Protector(detector="embedded", policy=policy)
