"""Exceptions of the package; every one of them is a :class:`ProtectorError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protector_guardrails.types import Outcome


class ProtectorError(Exception):
    """Anything that this package raises on purpose."""


class ConfigurationError(ProtectorError, ValueError):
    """A name, option or combination of options that cannot work."""


class MissingExtraError(ProtectorError, ImportError):
    """Something was asked for that needs an optional dependency.

    Args:
        what: What was asked for.
        extra: The extra that brings it.
        instead: What does without, if something does.
    """

    def __init__(self, what: str, *, extra: str, instead: str = "") -> None:
        otherwise = f", or {instead}" if instead else ""
        super().__init__(f"{what} needs an extra: pip install 'protector-guardrails[{extra}]'{otherwise}")
        self.what, self.extra, self.instead = what, extra, instead

    def __reduce__(self) -> tuple[Any, ...]:  # the default would rebuild it from the message
        return (_missing_extra, (self.what, self.extra, self.instead))


class WeightsError(ProtectorError):
    """Weights are missing, incomplete or not the ones that were published."""


class InputError(ProtectorError, TypeError):
    """Something was handed to a guard that has no response to judge."""


class DetectorError(ProtectorError):
    """A detector failed, or returned something that is not one verdict per exchange."""


class DetoxifierError(ProtectorError):
    """A detoxifier failed, or did not return one text per exchange."""


class GuardTimeoutError(ProtectorError, TimeoutError):
    """Judging or rewriting took longer than ``Policy.timeout_s``."""


class AuditError(ProtectorError):
    """A response could not be recorded in an audit log that is required."""


class ModelError(ProtectorError):
    """The protected model failed with an error that may quote what it wrote; what it said is withheld."""


class HarmfulResponseError(ProtectorError):
    """A response was judged harmful under ``Policy(on_harm="raise")``.

    The message holds no text of the response, so it can be logged.

    Attributes:
        outcome: The whole record. ``outcome.text`` is a refusal that can be shown;
            ``outcome.exchange`` holds the harmful text and should stay out of logs.
    """

    def __init__(self, outcome: Outcome) -> None:
        verdict = outcome.verdict
        detail = f" (score {verdict.score:.3f}, threshold {verdict.threshold:g}, {verdict.detector})" if verdict else ""
        super().__init__(f"the response was judged harmful{detail}")
        self.outcome = outcome

    def __reduce__(self) -> tuple[Any, ...]:  # the default would rebuild it from the message
        return (HarmfulResponseError, (self.outcome,))

    @property
    def refusal(self) -> str:
        """A text that can be shown instead of the response."""
        return self.outcome.text


def _missing_extra(what: str, extra: str, instead: str) -> MissingExtraError:
    return MissingExtraError(what, extra=extra, instead=instead)
