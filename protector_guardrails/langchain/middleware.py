"""``ProtectorMiddleware``: LangChain's agents under guard."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, cast, get_args

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage

from protector_guardrails.audit import AuditLog, open_audit
from protector_guardrails.detectors import check_detector
from protector_guardrails.detectors.base import HarmDetector
from protector_guardrails.detoxifiers import AnyDetoxifier, check_detoxifier
from protector_guardrails.errors import ConfigurationError, HarmfulResponseError, MissingExtraError
from protector_guardrails.langchain.guard_runnable import Ask, Delivery
from protector_guardrails.langchain.guards import Guard, guard_for, read_record
from protector_guardrails.langchain.items import Item
from protector_guardrails.langchain.messages import METADATA_KEY, question_of, read_response
from protector_guardrails.langchain.protected_model import protect
from protector_guardrails.langchain.review import reviewing, withheld
from protector_guardrails.langchain.screening import input_policy, screening_input, screening_result
from protector_guardrails.langchain.steps import Handle, Steps, Tell, arun_steps, run_steps
from protector_guardrails.langchain.vault import Heard, Held, Overhearing, listening
from protector_guardrails.policy import Policy, PolicyLike

try:
    from langchain.agents.middleware import AgentMiddleware, ExtendedModelResponse, ModelResponse, hook_config
    from langchain.agents.structured_output import StructuredOutputError
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtraError("ProtectorMiddleware", extra="agents") from error

_log = logging.getLogger(__name__)

_TRIES = 3
"""How often in a row a model is asked for structured output that is then refused."""

Mode = Literal["detoxify", "refuse", "end", "interrupt"]


class ProtectorMiddleware(AgentMiddleware[Any, Any, Any]):
    """Guards the model calls of an agent made with ``langchain.agents.create_agent``.

    The agent's model is called under :func:`~protector_guardrails.protect`, so that the
    state, the checkpoints and every stream mode hold judged text only. Tool calls are judged
    with the text. Put it **last** in the list of middleware: it is then nearest to the
    model, and none of the others can replace the model it protects.

    What it does not reach: models that other middleware or tools call by themselves (protect
    those with :func:`~protector_guardrails.protect`), and what callbacks, ``astream_events``,
    ``stream_mode="tools"`` and tracers show of a tool's own run.

    Modes, for an answer that is harmful or that could not be judged:

    - ``"detoxify"``: a rewrite takes its place, or the refusal where that fails.
    - ``"refuse"``: the refusal takes its place. Having no tool calls it usually ends the
      run, unless other middleware goes on.
    - ``"end"``: the same, and the agent ends there, whatever other middleware wants.
    - ``"interrupt"``: the refusal takes its place and the graph waits for a human (it
      needs a checkpointer). The interrupt shows a masked text and the verdict. Resume with
      ``{"type": "approve"}`` (the answer itself takes the refusal's place, and its tool calls
      run), ``{"type": "edit", "text": ...}`` (which is judged too), or ``{"type": "reject"}``. Until then
      the answer waits in the memory of this process only: after a restart, in another
      process, or after ``review_within_s`` there is nothing left to approve; the refusal
      then stays and says so.

    Without a mode, ``policy.on_harm`` decides, which includes ``"flag"`` and ``"raise"``.

    Args:
        detector: ``"embedded"`` or a :class:`~protector_guardrails.HarmDetector`.
        detoxifier: ``"redact"``, ``"refuse"``, a :class:`~protector_guardrails.Detoxifier`, or a chat model to rewrite.
        policy: Thresholds, actions and limits; a :class:`~protector_guardrails.Policy` or a dict of its fields.
        mode: What follows harm; see above.
        judge_tool_results: Judge what tools return before it enters the state. Harmful
            content is rewritten or withheld, and the artifact dropped; call id and status stay. An
            artifact by itself is not judged.
        judge_input: Judge what the user wrote before the agent begins. A harmful message
            is masked in the state and the agent ends with a refusal. A checkpointer has stored
            the input by then, and ``stream_mode="values"`` has shown it.
        audit: Where outcomes are recorded: an :class:`~protector_guardrails.AuditLog` or the path of one.
        raw_callbacks: Handlers that see raw answers: for debugging, in a place that nobody else reads.
        review_within_s: Seconds for which a withheld answer can be approved.

    Raises:
        MissingExtraError: On import, without the extra ``agents``.
        ConfigurationError: If a name is not known, or mode and policy contradict each other.

    Example:
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from protector_guardrails import ProtectorMiddleware
        >>> model = FakeListChatModel(responses=["At nine."])
        >>> agent = create_agent(model, middleware=[ProtectorMiddleware(mode="end")])
        >>> state = agent.invoke({"messages": [("user", "When does it open?")]})
        >>> state["messages"][-1].content
        'At nine.'
    """

    def __init__(
        self,
        *,
        detector: str | HarmDetector = "embedded",
        detoxifier: AnyDetoxifier = "redact",
        policy: PolicyLike | None = None,
        mode: Mode | None = None,
        judge_tool_results: bool = False,
        judge_input: bool = False,
        audit: AuditLog | str | PathLike[str] | None = None,
        raw_callbacks: Sequence[BaseCallbackHandler] = (),
        review_within_s: float = 3600.0,
    ) -> None:
        super().__init__()
        check_detector(detector)
        detoxifier = check_detoxifier(detoxifier)
        if not review_within_s > 0:
            raise ConfigurationError(f"review_within_s is {review_within_s}: use a positive number of seconds")
        policy = _acting(Policy() if policy is None else Policy.model_validate(policy), mode)
        log = open_audit(audit)
        self.mode = mode
        self.policy = policy
        self.review_within_s = review_within_s
        self._guard = guard_for(detector, policy, detoxifier, log)
        self._input_guard = guard_for(detector, input_policy(policy), "refuse", log)
        self._warned = False
        heard_by = (*raw_callbacks, Overhearing()) if mode == "interrupt" else tuple(raw_callbacks)
        self._protect = functools.partial(
            protect, detector=detector, detoxifier=detoxifier, policy=policy, audit=log, raw_callbacks=heard_by
        )
        hooks: list[type[_Hooks]] = []
        if mode == "end":
            hooks.append(_EndsAfterHarm)
        if mode == "interrupt":
            hooks.append(_AsksAHuman)
        if judge_tool_results:
            hooks.append(_JudgesToolResults)
        if judge_input:
            hooks.append(_JudgesInput)
        if hooks:
            # Every hook a class has becomes a node of the graph, and a tool hook adds a tools node: an
            # agent gets those it needs, and without them is drawn as it would be without a guard.
            self.__class__ = _with_hooks(cast("Any", type(self)), tuple(hooks))

    # Model calls ---------------------------------------------------------------------

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Have the model called under guard."""
        return run_steps(self._calling(request, handler))

    async def awrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Like :meth:`wrap_model_call`, without blocking the event loop."""
        return await arun_steps(self._calling(request, handler))

    def _calling(self, request: Any, handler: Callable[[Any], Any]) -> Steps[Any]:
        self._check_that_it_ends(request)
        heard = Heard()
        with listening(heard):
            try:
                response = yield Handle(handler, request.override(model=self._protect(request.model)))
            except StructuredOutputError as error:
                # A refusal has not the form that was asked for: the agent ends with it instead of failing.
                if not self._is_replaced(error.ai_message):
                    raise
                response = ModelResponse(result=[error.ai_message])
        response = yield from self._surely_judged(request, response, heard)
        if self.mode == "interrupt":
            return self._withheld(request, response, heard)
        replaced = any(self._is_replaced(message) for message in response.result)
        if replaced and request.response_format is not None and response.structured_response is None:
            # An agent that only wants structured output would ask again and again.
            return ExtendedModelResponse(model_response=response, command=Command(update={"jump_to": "end"}))
        return response

    def _check_that_it_ends(self, request: Any) -> None:
        refused = itertools.takewhile(self._is_replaced, reversed(request.messages))
        if request.response_format is not None and len(list(itertools.islice(refused, _TRIES))) == _TRIES:
            raise ConfigurationError(
                f"the last {_TRIES} answers in a row were replaced, and the agent asks again because it has no "
                "structured response: use ProtectorMiddleware(mode='end'), which ends the run also where other "
                "middleware has after_model hooks"
            )

    def _surely_judged(self, request: Any, response: Any, heard: Heard) -> Steps[Any]:
        """The response, judged here if its model was not the one that was put in its place."""
        for message in response.result:
            if not isinstance(message, AIMessage) or self._judged(message) is not None:
                continue
            if not self._warned:
                self._warned = True
                _log.warning(
                    "an answer came from a model that ProtectorMiddleware did not protect, or was changed after it: "
                    "it is judged now, but streams may have shown it; put ProtectorMiddleware last in the list"
                )
            item = Item(message, message, read_response(message, question=question_of(request.messages)), asked=True)
            [outcome] = yield Ask(self._guard, [item.exchange])
            delivery = Delivery()
            delivery.settle(item, outcome, self._guard, None)
            yield Tell(delivery.events)
            if isinstance(delivery.error, HarmfulResponseError):
                raise HarmfulResponseError(outcome.without_response())
            if delivery.error is not None:
                raise delivery.error
            if outcome.changed:
                heard.message = message
                return ModelResponse(result=[delivery.output])
            result = [delivery.output if other is message else other for other in response.result]
            response = ModelResponse(result=result, structured_response=response.structured_response)
        return response

    def _withheld(self, request: Any, response: Any, heard: Heard) -> Any:
        """The response with a notice for the human where the answer was refused."""
        notice = next((message for message in response.result if self._is_replaced(message)), None)
        if notice is None or heard.message is None:
            return response
        held = Held(
            heard.message,
            tools=frozenset(_name_of(tool) for tool in request.tools),
            response_format=request.response_format,
            keep_s=self.review_within_s,
        )
        return ModelResponse(result=[withheld(notice, held)])

    def _judged(self, message: BaseMessage) -> Any:
        judged = read_record(message.response_metadata.get(METADATA_KEY), read_response(message))
        return judged if judged is not None and judged.guard is self._guard else None

    def _is_replaced(self, message: BaseMessage) -> bool:
        judged = self._judged(message) if isinstance(message, AIMessage) else None
        return judged is not None and judged.action in ("rewrite", "refuse")


# What only some agents need ----------------------------------------------------------------


class _Hooks(AgentMiddleware[Any, Any, Any]):
    """A part of :class:`ProtectorMiddleware`."""

    _guard: Guard
    _input_guard: Guard


class _EndsAfterHarm(_Hooks):
    @hook_config(can_jump_to=["end"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """End the run if the last answer was replaced."""
        last = state["messages"][-1]
        return {"jump_to": "end"} if cast("ProtectorMiddleware", self)._is_replaced(last) else None

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Like :meth:`after_model`."""
        return self.after_model(state, runtime)


class _AsksAHuman(_Hooks):
    @hook_config(can_jump_to=["end"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Interrupt if the last answer is withheld, and do what the human decides."""
        return run_steps(reviewing(state["messages"], self._guard))

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Like :meth:`after_model`, without blocking the event loop."""
        return await arun_steps(reviewing(state["messages"], self._guard))


class _JudgesToolResults(_Hooks):
    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Judge what the tool returns."""
        return run_steps(self._returning(request, handler))

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Like :meth:`wrap_tool_call`, without blocking the event loop."""
        return await arun_steps(self._returning(request, handler))

    def _returning(self, request: Any, handler: Callable[[Any], Any]) -> Steps[Any]:
        return (yield from screening_result((yield Handle(handler, request)), self._guard))


class _JudgesInput(_Hooks):
    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Judge what the user wrote."""
        return run_steps(screening_input(state, self._input_guard))

    @hook_config(can_jump_to=["end"])
    async def abefore_agent(self, state: Any, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Like :meth:`before_agent`, without blocking the event loop."""
        return await arun_steps(screening_input(state, self._input_guard))


@functools.lru_cache(maxsize=64)
def _with_hooks(cls: type[Any], hooks: tuple[type[_Hooks], ...]) -> type[Any]:
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, *hooks), names)


def _acting(policy: Policy, mode: Mode | None) -> Policy:
    if mode is None:
        return policy
    if mode not in get_args(Mode):
        raise ConfigurationError(f"mode is {mode!r}: use one of {', '.join(map(repr, get_args(Mode)))}, or None")
    if policy.on_harm in ("flag", "raise"):
        raise ConfigurationError(
            f"mode={mode!r} contradicts policy.on_harm={policy.on_harm!r}: leave one of them out (without a mode "
            "the policy decides)"
        )
    changes: dict[str, Any] = {"on_harm": "detoxify" if mode == "detoxify" else "refuse"}
    if mode == "interrupt":
        changes["streaming"] = "full"  # an answer of which a part has left cannot be withheld
    return policy.model_copy(update=changes)


def _name_of(tool: Any) -> str:
    return str(tool.get("name") or "") if isinstance(tool, Mapping) else str(getattr(tool, "name", ""))
