"""The forms that are compared: a model alone, the bare chain, and ``protect()`` under several policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from langchain_core.runnables import Runnable

from protector_guardrails import DetoxifierRunnable, HarmDetectorRunnable, Policy, protect
from protector_guardrails.langchain.middleware import ProtectorMiddleware

from .scripted import BrokenDetector, MarkerDetector, PromptDetector

REFUSAL = "Nothing is said about it here."
_WINDOW = {"streaming": "window", "window_chars": 40, "overlap_chars": 12}
_DETECTORS = {"marker": MarkerDetector(), "prompt": PromptDetector(), "broken": BrokenDetector()}

Kind = Literal["none", "chain", "protect", "middleware"]


@dataclass(frozen=True)
class Form:
    """One way to use a model.

    Attributes:
        name: Short and unique.
        title: How it is written in the head of a table.
        kind: What puts the model under guard.
        policy: The policy's fields.
        detector: Which detector judges.
        mode: The middleware's mode.
    """

    name: str
    title: str
    kind: Kind
    policy: tuple[tuple[str, Any], ...] = ()
    detector: str = "marker"
    mode: str | None = None

    @property
    def judge(self) -> MarkerDetector:
        """The detector."""
        return _DETECTORS[self.detector]

    @property
    def settings(self) -> Policy:
        """The policy."""
        return Policy.model_validate({"refusal": REFUSAL, **dict(self.policy)})

    @property
    def is_guarded(self) -> bool:
        """Whether nothing may leave it."""
        return self.kind in ("protect", "middleware")

    def around(self, model: Runnable[Any, Any], **options: Any) -> Any:
        """The model in this form; the middleware is put around an agent, not around a model."""
        if self.kind == "protect":
            return protect(model, detector=self.judge, policy=self.settings, **options)
        if self.kind == "chain":
            detect = HarmDetectorRunnable(self.judge, policy=self.settings, **options)
            return model | detect | DetoxifierRunnable("redact", policy=self.settings, **options)
        return model

    def middleware(self, **options: Any) -> list[Any]:
        """What is put around an agent."""
        if self.kind != "middleware":
            return []
        mode = cast("Any", self.mode)
        return [ProtectorMiddleware(detector=self.judge, policy=self.settings, mode=mode, **options)]


def _form(
    name: str,
    title: str,
    kind: Kind,
    *,
    detector: str = "prompt",
    mode: str | None = None,
    **policy: Any,
) -> Form:
    # One form of a kind has the usual time limit, for which its detector works in threads; the others are quicker.
    policy.setdefault("timeout_s", 30.0 if detector == "marker" else None)
    return Form(name, title, kind, tuple(policy.items()), detector, mode)


ALONE = _form("alone", "model alone", "none")
CHAIN = _form("chain", "bare chain", "chain")
CHAIN_WINDOW = _form("chain-window", "bare chain, window", "chain", **_WINDOW)
CHAIN_RAISE = _form("chain-raise", "bare chain, raise", "chain", on_harm="raise")
PROTECTED = (
    _form("detoxify", "detoxify", "protect", detector="marker"),
    _form("window", "detoxify, window", "protect", **_WINDOW),
    _form("refuse", "refuse", "protect", on_harm="refuse"),
    _form("raise", "raise", "protect", on_harm="raise"),
    _form("raise-window", "raise, window", "protect", on_harm="raise", **_WINDOW),
    _form("broken", "detector fails", "protect", detector="broken", **_WINDOW),
)
MIDDLEWARE = (
    _form("mw-detoxify", "detoxify", "middleware", detector="marker", mode="detoxify"),
    _form("mw-window", "detoxify, window", "middleware", mode="detoxify", **_WINDOW),
    _form("mw-refuse", "refuse", "middleware", mode="refuse"),
    _form("mw-end", "end", "middleware", mode="end"),
    _form("mw-interrupt", "interrupt", "middleware", mode="interrupt"),
    _form("mw-raise", "raise", "middleware", on_harm="raise"),
    _form("mw-broken", "interrupt, detector fails", "middleware", detector="broken", mode="interrupt"),
)
FORMS = (ALONE, CHAIN, CHAIN_WINDOW, *PROTECTED, *MIDDLEWARE)
