"""A guard for retrieved passages, before an answer is made of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, Node, NodeWithScore, QueryBundle
from pydantic import Field

from protector_guardrails.asking import Request
from protector_guardrails.audit import AuditLog
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.errors import ProtectorError
from protector_guardrails.llama_index.component import GuardComponent
from protector_guardrails.llama_index.events import METADATA_KEY, record_of, tell
from protector_guardrails.llama_index.responses import asked_with
from protector_guardrails.policy import Policy, PolicyLike
from protector_guardrails.protector import Protector
from protector_guardrails.telemetry import guarding
from protector_guardrails.types import Exchange, Outcome


class HarmNodePostprocessor(GuardComponent, BaseNodePostprocessor):
    """Drops or masks harmful passages that were retrieved, so that no answer is made of them.

    A passage is judged as the LLM would read it, with the metadata that it would see, and
    with the query as the question. Safe passages go on as the objects that they were. A
    harmful one is dropped, or masked: a copy goes on, without the harmful sentences and with
    the verdict in its metadata, where the LLM does not see it. Where masking does not help
    (harm in the metadata, too little left, a passage that carries a picture, sound or video)
    it is dropped. So is a passage that cannot be judged, unless the policy is
    ``on_error="open"``. The policy's ``on_harm`` is not looked at: ``mode`` says what to do.

    Out of scope: pictures themselves, metadata that the LLM does not see, and harm that lies
    in several passages together. Guard the answer as well.

    Args:
        mode: ``"drop"`` or ``"mask"``.
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        policy: Thresholds and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.

    Raises:
        ConfigurationError: When made, if a name is not known.

    Example:
        >>> from llama_index.core.schema import NodeWithScore, TextNode
        >>> from protector_guardrails.llama_index import HarmNodePostprocessor
        >>> nodes = [NodeWithScore(node=TextNode(text="Tulips are planted in autumn."), score=0.9)]
        >>> HarmNodePostprocessor(mode="mask").postprocess_nodes(nodes, query_str="When?") == nodes
        True
    """

    mode: Literal["drop", "mask"] = Field(default="drop", frozen=True)

    def __init__(
        self,
        *,
        mode: Literal["drop", "mask"] = "drop",
        detector: str | HarmDetector = "embedded",
        policy: PolicyLike | None = None,
        audit: AuditLog | str | PathLike[str] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["detoxifier"] = "redact" if mode == "mask" else "refuse"
        super().__init__(detector=detector, policy=policy, audit=audit, mode=mode, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "HarmNodePostprocessor"

    @property
    def acting_policy(self) -> Policy:
        """The policy, but for what is done about harm, which the mode says."""
        return self.policy.model_copy(update={"on_harm": "detoxify" if self.mode == "mask" else "refuse"})

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        protector, passages = self.protector, _Passages(nodes, query_bundle)
        with guarding(detector=protector.detector.name, exchanges=passages.exchanges) as observed:
            outcomes = protector.recorded(protector.asker.run(passages.deciding(protector)))
            observed.settle(outcomes)
        return passages.left(outcomes)

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        protector, passages = await self.aprotector(), _Passages(nodes, query_bundle)
        with guarding(detector=protector.detector.name, exchanges=passages.exchanges) as observed:
            outcomes = await protector.arecorded(await protector.asker.arun(passages.deciding(protector)))
            observed.settle(outcomes)
        return passages.left(outcomes)


class _Passages:
    """Passages of one query: those with something to read are judged."""

    def __init__(self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None) -> None:
        self._asked = asked_with(query_bundle=query_bundle)
        self._nodes = nodes
        self._read = [given for given in nodes if _as_read(given.node).strip()]
        self.exchanges = [
            self._exchange(given.node.get_content(metadata_mode=MetadataMode.NONE)) for given in self._read
        ]

    def _exchange(self, text: str) -> Exchange:
        return replace(self._asked, response=text)

    def deciding(self, protector: Protector) -> Generator[Request, Any, list[Outcome]]:
        """Judge the passages with their metadata, mask their texts, and judge again what the LLM would read then."""
        judged = yield from protector.judging([self._exchange(_as_read(given.node)) for given in self._read])
        outcomes = yield from protector.deciding(self.exchanges, judged)
        masked = [index for index, outcome in enumerate(outcomes) if outcome.action == "rewrite"]
        again = [self._exchange(_as_read(_masked(self._read[index], outcomes[index]).node)) for index in masked]
        for index, recheck in zip(masked, (yield from protector.judging(again)), strict=True):
            outcome = outcomes[index]
            if isinstance(recheck, ProtectorError) or recheck.harmful or _has_media(self._read[index].node):
                # A picture may show what its text was masked for.
                refusal = protector.policy.refusal_for(outcome.verdict)
                outcomes[index] = replace(outcome, action="refuse", text=refusal)
        return outcomes

    def left(self, outcomes: Sequence[Outcome]) -> list[NodeWithScore]:
        """The nodes that go on."""
        decided = {id(given): outcome for given, outcome in zip(self._read, outcomes, strict=True)}
        left = []
        for given in self._nodes:
            outcome = decided.get(id(given))  # none for a passage with nothing to read
            if outcome is not None:
                tell(outcome, subject="passage")
            if outcome is None or not outcome.changed:
                left.append(given)
            elif outcome.action == "rewrite":
                left.append(_masked(given, outcome))
        return left


def _as_read(node: BaseNode) -> str:
    """What an LLM reads of a node."""
    if isinstance(node, Node) and node.text_resource is None:  # which says nothing at all then, metadata included
        return node.get_metadata_str(mode=MetadataMode.LLM)
    return node.get_content(metadata_mode=MetadataMode.LLM)


def _masked(given: NodeWithScore, outcome: Outcome) -> NodeWithScore:
    """A copy with the text that is left, and the verdict where neither an LLM nor an embedding sees it."""
    node = given.node.model_copy(deep=True)
    node.set_content(outcome.text)
    node.metadata = {**node.metadata, METADATA_KEY: record_of(outcome)}
    node.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, METADATA_KEY]
    node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, METADATA_KEY]
    return NodeWithScore(node=node, score=given.score)


def _has_media(node: BaseNode) -> bool:
    if isinstance(node, Node):
        return any((node.image_resource, node.audio_resource, node.video_resource))
    return isinstance(node, ImageNode)
