"""Exceptions of the package; every one of them is a :class:`ProtectorError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protector_guardrails.types import Outcome


class ProtectorError(Exception):
    """Anything that this package raises on purpose.

    Example:
        >>> from protector_guardrails import Policy, ProtectorError, protect
        >>> try:
        ...     protect("no model")
        ... except ProtectorError as error:
        ...     print(type(error).__name__)
        ConfigurationError
    """


class ConfigurationError(ProtectorError, ValueError):
    """A name, option or combination of options that cannot work.

    Example:
        >>> from protector_guardrails import Protector
        >>> Protector(detoxifier="polish")
        Traceback (most recent call last):
        ...
        protector_guardrails.errors.ConfigurationError: ...
    """


class MissingExtraError(ProtectorError, ImportError):
    """Something was asked for that needs an optional dependency.

    Args:
        what: What was asked for.
        extra: The extra that brings it.
        instead: What does without, if something does.

    Example:
        >>> print(MissingExtraError("a chart", extra="plots"))
        a chart needs an extra: pip install 'protector-guardrails[plots]'
    """

    def __init__(self, what: str, *, extra: str, instead: str = "") -> None:
        otherwise = f", or {instead}" if instead else ""
        super().__init__(f"{what} needs an extra: pip install 'protector-guardrails[{extra}]'{otherwise}")
        self.what, self.extra, self.instead = what, extra, instead

    def __reduce__(self) -> tuple[Any, ...]:  # the default would rebuild it from the message
        return (_missing_extra, (self.what, self.extra, self.instead))


class WeightsError(ProtectorError):
    """Weights are missing, incomplete or not the ones that were published.

    Example:
        >>> from protector_guardrails import EmbeddedDetector
        >>> EmbeddedDetector("no/such/folder")
        Traceback (most recent call last):
        ...
        protector_guardrails.errors.WeightsError: ...
    """


class InputError(ProtectorError, TypeError):
    """Something was handed to a guard that has no response to judge.

    Example:
        >>> from protector_guardrails import HarmDetectorRunnable
        >>> HarmDetectorRunnable().invoke(42)
        Traceback (most recent call last):
        ...
        protector_guardrails.errors.InputError: ...
    """


class DetectorError(ProtectorError):
    """A detector failed, or returned something that is not one verdict per exchange.

    Example:
        A guard turns it into a refusal; whoever asks for that sees it:

        >>> from protector_guardrails import Exchange, HarmDetector, Policy, Protector
        >>> class Broken(HarmDetector):
        ...     def detect(self, exchanges):
        ...         raise OSError("the disk is full")
        >>> [outcome] = Protector(Broken()).guard([Exchange(response="At nine.")])
        >>> outcome.action, outcome.error
        ('refuse', 'DetectorError: OSError was raised')
    """


class DetoxifierError(ProtectorError):
    """A detoxifier failed, or did not return one text per exchange.

    Example:
        A guard turns it into the refusal:

        >>> from protector_guardrails import Detoxifier, Exchange, HarmDetector, Protector, Verdict
        >>> class Harsh(HarmDetector):
        ...     def detect(self, exchanges):
        ...         return [Verdict(harmful=True, score=1.0) for _ in exchanges]
        >>> class Broken(Detoxifier):
        ...     def detoxify(self, exchanges, verdicts):
        ...         raise OSError("the disk is full")
        >>> [outcome] = Protector(Harsh(), Broken()).guard([Exchange(response="At nine.")])
        >>> outcome.action, outcome.error
        ('refuse', 'DetoxifierError: OSError was raised')
    """


class GuardTimeoutError(ProtectorError, TimeoutError):
    """Judging or rewriting took longer than ``Policy.timeout_s``.

    Example:
        A guard turns it into a refusal:

        >>> import time
        >>> from protector_guardrails import Exchange, HarmDetector, Policy, Protector
        >>> class Slow(HarmDetector):
        ...     def detect(self, exchanges):
        ...         time.sleep(0.2)
        >>> [outcome] = Protector(Slow(), policy=Policy(timeout_s=0.01)).guard([Exchange(response="At nine.")])
        >>> outcome.action, outcome.error.partition(":")[0]
        ('refuse', 'GuardTimeoutError')
    """


class AuditError(ProtectorError):
    """A response could not be recorded in an audit log that is required.

    Example:
        A guard turns it into a refusal:

        >>> import pathlib, tempfile
        >>> from protector_guardrails import AuditLog, Exchange, Protector
        >>> folder = tempfile.TemporaryDirectory()
        >>> log = AuditLog(pathlib.Path(folder.name, "audit.jsonl"), required=True)
        >>> folder.cleanup()
        >>> [outcome] = Protector(audit=log).guard([Exchange(response="At nine.")])
        >>> outcome.action, outcome.error.partition(":")[0]
        ('refuse', 'AuditError')
    """


class ModelError(ProtectorError):
    """The protected model failed with an error that may quote what it wrote; what it said is withheld.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from protector_guardrails import HarmDetector, Verdict, protect
        >>> class Harsh(HarmDetector):
        ...     def detect(self, exchanges):
        ...         return [Verdict(harmful=True, score=1.0) for _ in exchanges]
        >>> class Failing(FakeListChatModel):
        ...     def _call(self, *args, **kwargs):
        ...         raise ValueError(f"cannot parse {self.responses[0]}")
        >>> protect(Failing(responses=["what it wrote"]), detector=Harsh()).invoke("When?")
        Traceback (most recent call last):
        ...
        protector_guardrails.errors.ModelError: ...
    """


class HarmfulResponseError(ProtectorError):
    """A response was judged harmful under ``Policy(on_harm="raise")``.

    The message holds no text of the response, so it can be logged.

    Attributes:
        outcome: The whole record. ``outcome.text`` is a refusal that can be shown;
            ``outcome.exchange`` holds the harmful text and should stay out of logs.

    Example:
        >>> from protector_guardrails import Exchange, HarmDetector, Policy, Protector, Verdict
        >>> class Harsh(HarmDetector):
        ...     def detect(self, exchanges):
        ...         return [Verdict(harmful=True, score=1.0) for _ in exchanges]
        >>> Protector(Harsh(), policy=Policy(on_harm="raise", refusal="No.")).guard([Exchange(response="At nine.")])
        Traceback (most recent call last):
        ...
        protector_guardrails.errors.HarmfulResponseError: the response was judged harmful (score 1.000, ...)
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
