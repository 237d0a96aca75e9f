"""What every guard of LlamaIndex has: its settings, and the protector made of them at its first use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any, Self, TypeVar

from llama_index.core.schema import BaseComponent
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer, field_validator

from protector_guardrails.audit import AuditLog, open_audit
from protector_guardrails.detectors import check_detector, check_thresholds
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier, check_detoxifier
from protector_guardrails.detoxifiers.base import Detoxifier
from protector_guardrails.errors import ConfigurationError
from protector_guardrails.policy import Policy, PolicyLike
from protector_guardrails.protector import Protector
from protector_guardrails.threads import run_in_thread

_Component = TypeVar("_Component", bound="GuardComponent")


class GuardComponent(BaseComponent):
    """A component of LlamaIndex that guards.

    Its settings cannot be changed once it is made. ``to_dict`` and ``from_dict`` carry them;
    ``to_json`` can only where detector and detoxifier are names. Unlike other components it
    does not pickle at all if one of its settings does not: a guard that lost its detector on
    the way would be another guard.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    detector: str | HarmDetector = Field(default="embedded", frozen=True)
    detoxifier: str | Detoxifier = Field(default="redact", frozen=True)
    policy: Policy = Field(default_factory=Policy, frozen=True)
    audit: AuditLog | None = Field(default=None, frozen=True)
    _protector: Protector | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        detector: str | HarmDetector = "embedded",
        detoxifier: AnyDetoxifier = "redact",
        policy: PolicyLike | None = None,
        audit: AuditLog | str | PathLike[str] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Before pydantic, which would make validation errors of these.
        check_detector(detector)
        kept = check_detoxifier(detoxifier)
        opened = AuditLog(**audit) if isinstance(audit, Mapping) else open_audit(audit)
        settings = {"detector": detector, "detoxifier": kept, "policy": policy, "audit": opened}
        super().__init__(**settings, **kwargs)
        check_thresholds(self.policy, detector)

    @field_validator("policy", mode="before")
    @classmethod
    def _or_default(cls, policy: Any) -> Any:
        return Policy() if policy is None else policy

    @field_serializer("audit")
    def _as_settings(self, audit: AuditLog | None) -> dict[str, Any] | None:
        return {"path": str(audit.path), "texts": audit.texts, "required": audit.required} if audit else None

    @property
    def protector(self) -> Protector:
        """The protector, made when it is first needed.

        Raises:
            ProtectorError: If the detector or detoxifier cannot be loaded.
        """
        if self._protector is None:  # made twice by a race, it is the same twice
            self._protector = Protector(self.detector, self.detoxifier, policy=self.acting_policy, audit=self.audit)
        return self._protector

    async def aprotector(self) -> Protector:
        """The protector; where weights have to be read for it, off the event loop."""
        if self._protector is None:
            return await run_in_thread(lambda: self.protector)
        return self._protector

    @property
    def acting_policy(self) -> Policy:
        """The policy under which it decides."""
        return self.policy

    def to_json(self, **kwargs: Any) -> str:
        """The settings as JSON.

        Raises:
            ConfigurationError: If the detector or detoxifier is an object, which JSON cannot hold.
        """
        try:
            return json.dumps(self.to_dict(**kwargs))
        except TypeError:
            raise ConfigurationError(
                f"{self.class_name()} has a detector or detoxifier that is an object, which JSON cannot hold: "
                "pickle it, or write the settings down without it and pass it to from_dict again"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseComponent would drop what does not pickle, and come back with the default detector instead.
        settings = {name: getattr(self, name) for name in type(self).model_fields if name != "callback_manager"}
        return _rebuilt, (type(self), settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # its settings never change, and weights are not worth a second copy


def as_json(value: BaseModel) -> str:
    """A structured answer as the text that is judged."""
    return value.model_dump_json()


def _rebuilt(cls: type[_Component], settings: dict[str, Any]) -> _Component:
    return cls(**settings)
