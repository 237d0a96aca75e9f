"""Guards that runnables share, and how one hands its verdict to the next.

In ``detector | detoxifier`` two objects work on one response. What the first one found
travels in the message's metadata, sealed: the seal is a keyed hash over the verdict and
over everything that was judged, with a key that never leaves the process. The second one
takes the verdict over only if the seal holds, so a text edited in between, a verdict that a
provider put there, or a message from another process is judged afresh.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors import check_thresholds
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.policy import Policy
from protector_guardrails.protector import Protector
from protector_guardrails.threads import run_in_thread
from protector_guardrails.types import Action, Exchange, Outcome, Verdict

_KEY = secrets.token_bytes(32)
_LOCK = threading.Lock()


class Guard:
    """A :class:`Protector` made at its first use, with a token to find it by.

    Use :func:`guard_for`, which gives equal settings the same guard.

    Raises:
        ConfigurationError: If the policy names a threshold that the detector does not have.
    """

    def __init__(
        self, detector: str | HarmDetector, policy: Policy, detoxifier: str | Detoxifier, audit: AuditLog | None
    ) -> None:
        check_thresholds(policy, detector)
        self.detector = detector
        self.policy = policy
        self.detoxifier = detoxifier
        self.audit = audit
        self.token = secrets.token_hex(8)
        self._protector: Protector | None = None

    @property
    def protector(self) -> Protector:
        """The protector.

        Raises:
            ProtectorError: If the detector or detoxifier cannot be loaded.
        """
        if self._protector is None:  # made twice by a race, it is the same twice
            self._protector = Protector(self.detector, self.detoxifier, policy=self.policy, audit=self.audit)
        return self._protector

    async def aprotector(self) -> Protector:
        """The protector; where weights have to be read for it, off the event loop."""
        if self._protector is None:
            return await run_in_thread(lambda: self.protector)
        return self._protector

    def __reduce__(self) -> tuple[Any, ...]:
        return guard_for, (self.detector, self.policy, self.detoxifier, self.audit)

    def __deepcopy__(self, memo: Any) -> Guard:
        return self


_by_settings: weakref.WeakValueDictionary[tuple[Any, ...], Guard] = weakref.WeakValueDictionary()
_by_token: weakref.WeakValueDictionary[str, Guard] = weakref.WeakValueDictionary()
# Runnables made anew for each call (configurable fields) are gone before the next step
# looks for their guard; the latest few are kept alive for it.
_latest: deque[Guard] = deque(maxlen=8)


def guard_for(
    detector: str | HarmDetector,
    policy: Policy,
    detoxifier: str | Detoxifier = "refuse",
    audit: AuditLog | None = None,
) -> Guard:
    """The guard with these settings; the same object as long as somebody uses it."""
    parts = (part if isinstance(part, str) else id(part) for part in (detector, detoxifier, audit))
    settings = (*parts, policy.model_dump_json())
    with _LOCK:
        guard = _by_settings.get(settings)
        if guard is None:
            guard = Guard(detector, policy, detoxifier, audit)
            _by_settings[settings] = guard
            _by_token[guard.token] = guard
        if guard not in _latest:
            _latest.append(guard)
        return guard


# Verdicts on their way ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict that was handed on and holds.

    Attributes:
        guard: The guard that gave it.
        action: What was done then.
        verdict: The first verdict; None if the detector failed.
        recheck: The verdict on the rewrite, if there was one.
        error: What went wrong then.
    """

    guard: Guard
    action: Action
    verdict: Verdict | None
    recheck: Verdict | None
    error: str | None


def sealed_record(outcome: Outcome, guard: Guard, leaving: Exchange) -> dict[str, Any]:
    """The JSON-able metadata of a response that leaves.

    Args:
        outcome: What became of it.
        guard: What judged it.
        leaving: What leaves, as the next step will read it.
    """
    verdict = outcome.verdict.to_dict() if outcome.verdict else {"harmful": None, "score": None}
    recheck = outcome.recheck.to_dict() if outcome.recheck else None
    record = {**verdict, "action": outcome.action, "recheck": recheck, "error": outcome.error, "guard": guard.token}
    return {**record, "seal": _seal(record, leaving)}


def read_record(record: Any, exchange: Exchange) -> Judged | None:
    """What was handed on with this exchange; None if nothing was, or if the seal is broken."""
    if not isinstance(record, Mapping) or not isinstance(record.get("seal"), str):
        return None
    with _LOCK:
        guard = _by_token.get(record["guard"]) if isinstance(record.get("guard"), str) else None
    if guard is None:
        return None
    try:
        verdict = None if record.get("harmful") is None else Verdict.from_dict(record)
        recheck = None if record.get("recheck") is None else Verdict.from_dict(record["recheck"])
        inner = verdict.to_dict() if verdict else {"harmful": None, "score": None}
        plain = {key: record[key] for key in ("action", "error", "guard")}
        expected = _seal({**inner, **plain, "recheck": recheck.to_dict() if recheck else None}, exchange)
        if not hmac.compare_digest(expected.encode(), record["seal"].encode()):
            return None
    except Exception:  # whatever a forged record holds, it is no verdict
        return None
    return Judged(guard, record["action"], verdict, recheck, record["error"])


def _seal(record: Mapping[str, Any], exchange: Exchange) -> str:
    # ASCII JSON, which writes lone surrogates as escapes where UTF-8 would raise.
    judged = json.dumps([record, exchange.passages], sort_keys=True)
    return hmac.new(_KEY, judged.encode("ascii"), hashlib.sha256).hexdigest()[:32]


# A plain str has no metadata: its record waits here, under the run that both steps are in.
_handed_on: OrderedDict[tuple[UUID, str], dict[str, Any]] = OrderedDict()
_HANDED_ON_LIMIT = 1024


def hand_on(scope: UUID | None, leaving: Exchange, record: dict[str, Any]) -> None:
    """Leave the record of a plain text for a later step of the same run."""
    if scope is not None:
        with _LOCK:
            _handed_on[scope, _digest(leaving)] = record
            while len(_handed_on) > _HANDED_ON_LIMIT:
                _handed_on.popitem(last=False)


def handed_on(scope: UUID | None, exchange: Exchange) -> dict[str, Any] | None:
    """The record that an earlier step of the same run left for this text."""
    if scope is None:
        return None
    with _LOCK:
        return _handed_on.get((scope, _digest(exchange)))


def _digest(exchange: Exchange) -> str:
    return hashlib.sha256(json.dumps(exchange.passages).encode("ascii")).hexdigest()


class Released:
    """What a guard has let go of a stream, for a later step of the same run, which need not judge it again."""

    def __init__(self, guard: Guard, scope: UUID | None) -> None:
        self.guard = guard
        self._scope = scope
        self._digests: deque[str] = deque()

    def add(self, exchange: Exchange) -> None:
        """Note what leaves."""
        self._digests.append(_digest(exchange))

    def take(self, exchange: Exchange) -> bool:
        """Whether this is what left next."""
        if self._digests and self._digests[0] == _digest(exchange):
            self._digests.popleft()
            return True
        return False

    def close(self) -> None:
        """Forget it: the stream is at its end, and who reads it has taken what it got."""
        self._digests.clear()
        with _LOCK:
            if self._scope is not None and _released.get(self._scope) is self:
                del _released[self._scope]


_released: OrderedDict[UUID, Released] = OrderedDict()


def release_for(scope: UUID | None, guard: Guard) -> Released:
    """Where a guard notes what it lets go in a run."""
    released = Released(guard, scope)
    if scope is not None:
        with _LOCK:
            _released[scope] = released
            while len(_released) > _HANDED_ON_LIMIT:
                _released.popitem(last=False)
    return released


def released_in(scope: UUID | None) -> Released | None:
    """What an earlier step of the same run lets go."""
    if scope is None:
        return None
    with _LOCK:
        return _released.get(scope)
