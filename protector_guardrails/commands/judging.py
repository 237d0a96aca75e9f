"""The guard behind ``check`` and ``score``: it judges, and lets everything through with its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from protector_guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from protector_guardrails.policy import Policy
    from protector_guardrails.protector import Protector


ThresholdOption = Annotated[
    str | None,
    typer.Option(help="Score from which it is harmful, 0 to 1, or its name, such as fpr-1%. [default: 0.5]"),
]


def policy_for(threshold: str | None) -> Policy:
    """A policy that flags and sets no time limit, with a threshold from the command line.

    Args:
        threshold: A number, or what the detector calls one of its thresholds; None for the default.

    Raises:
        ConfigurationError: If it is a number, but not in [0, 1], or empty.
    """
    from pydantic import ValidationError

    from protector_guardrails.policy import Policy

    if threshold is None:
        return Policy(on_harm="flag", timeout_s=None)
    try:
        return Policy(threshold=threshold, on_harm="flag", timeout_s=None)
    except ValidationError:
        raise ConfigurationError(
            f"--threshold must be a number from 0 to 1, or a name that the detector knows, not {threshold!r}"
        ) from None


def flagging_protector(threshold: str | None) -> Protector:
    """The embedded detector under :func:`policy_for`. An item that cannot be judged has no verdict, but an error.

    Raises:
        ConfigurationError: If the detector does not know the threshold.
        WeightsError: If the detector cannot be loaded.
    """
    policy = policy_for(threshold)
    from protector_guardrails.protector import Protector

    try:
        return Protector(detector="embedded", policy=policy)
    except ConfigurationError as error:
        raise ConfigurationError(f"--threshold: {error}") from None
