"""Judging what is not the model's answer: what tools return and what the user wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, convert_to_messages

from protector_guardrails.content import strings
from protector_guardrails.errors import HarmfulResponseError, InputError
from protector_guardrails.langchain.events import Subject, events_of
from protector_guardrails.langchain.guard_runnable import Ask
from protector_guardrails.langchain.guards import Guard, sealed_record
from protector_guardrails.langchain.messages import DESCRIPTIONS_KEY, read_response, with_metadata, with_text
from protector_guardrails.langchain.review import masked
from protector_guardrails.langchain.steps import Steps, Tell
from protector_guardrails.policy import REFUSAL, Policy, render_refusal
from protector_guardrails.types import Exchange, Outcome

if TYPE_CHECKING:
    from langgraph.types import Command

TOOL_REFUSAL = "The result of this tool was withheld: it was judged harmful, or could not be judged."
"""What the model reads in place of a harmful result."""

INPUT_REFUSAL = (
    "I can't help with this request as it stands: it may involve {harm}. "
    "I'm glad to help with a safe side of it, such as how to prevent it, where to find support, or what the law says."
)
"""The refusal of a request, where the policy has the default refusal, which speaks of an answer."""


# Tool results ---------------------------------------------------------------------------


def screening_result(result: Any, guard: Guard) -> Steps[Any]:
    """What a tool may return: the messages in its result with their verdict, harmful ones replaced.

    Args:
        result: A tool message, a command, or a list of them.
        guard: What judges.

    Raises:
        InputError: If a command's update has a form whose messages cannot be found.
    """
    if isinstance(result, list):
        screened = []
        for item in result:
            screened.append((yield from screening_result(item, guard)))
        return screened
    if isinstance(result, BaseMessage):
        [message] = yield from _screened([result], guard)
        return message
    found = _messages_in(result)
    if found is None:
        return result
    messages, put_back = found
    return put_back((yield from _screened(messages, guard)))


def _screened(messages: Sequence[BaseMessage], guard: Guard) -> Steps[list[BaseMessage]]:
    exchanges = [read_response(message) for message in messages]
    outcomes = yield from _judged(exchanges, guard, "tool_result")
    screened: list[BaseMessage] = []
    for message, exchange, outcome in zip(messages, exchanges, outcomes, strict=True):
        leaving, left = message, exchange
        if outcome.changed:
            rewritten = outcome.action == "rewrite"
            leaving = with_text(message, outcome.text if rewritten else TOOL_REFUSAL, keep_media=rewritten)
            left = read_response(leaving)
        screened.append(with_metadata(leaving, sealed_record(outcome, guard, left)))
    return screened


def _messages_in(command: Command[Any]) -> tuple[list[BaseMessage], Callable[[list[BaseMessage]], Any]] | None:
    """The messages that a command adds to the state, and how to put others in their place."""
    update = command.update
    if update is None or (isinstance(update, Mapping) and "messages" not in update):
        return None
    messages = update["messages"] if isinstance(update, Mapping) else None
    if not isinstance(messages, list | tuple | BaseMessage):
        raise InputError(
            "a tool returned a Command whose messages cannot be judged: "
            'let it return Command(update={"messages": [...], ...}), or leave judge_tool_results off'
        )
    read = convert_to_messages([messages] if isinstance(messages, BaseMessage) else messages)
    return read, lambda others: replace(command, update={**update, "messages": others})


# The user's input -----------------------------------------------------------------------


def input_policy(policy: Policy) -> Policy:
    """The policy for what the user wrote: it is not rewritten, but refused."""
    return policy if policy.on_harm in ("flag", "raise") else policy.model_copy(update={"on_harm": "refuse"})


def screening_input(state: Mapping[str, Any], guard: Guard) -> Steps[dict[str, Any] | None]:
    """Judge what the user wrote since the last answer; what is to change in the state.

    Each message is judged as a text of its own. One that is harmful is masked, under its id, and the
    agent ends with a refusal.
    """
    written = _written_last(state["messages"])
    exchanges = [_read_input(message) for message in written]
    outcomes = yield from _judged(exchanges, guard, "input")
    changed: list[BaseMessage] = []
    refused: Outcome | None = None
    for message, exchange, outcome in zip(written, exchanges, outcomes, strict=True):
        if outcome.changed:
            leaving = with_text(message, masked(exchange.response, outcome.verdict), keep_media=False)
            changed.append(with_metadata(leaving, sealed_record(outcome, guard, read_response(leaving))))
            # The verdict of the worst tells the kind of harm.
            if refused is None or (outcome.verdict and not refused.verdict):
                refused = outcome
        elif outcome.action == "flag":
            changed.append(with_metadata(message, sealed_record(outcome, guard, exchange)))
    if refused is None:
        return {"messages": changed} if changed else None
    template = INPUT_REFUSAL if guard.policy.refusal == REFUSAL else guard.policy.refusal
    text = render_refusal(template, refused.verdict)
    refusal = with_metadata(AIMessage(text), sealed_record(refused, guard, Exchange(response=text)))
    update: dict[str, Any] = {"messages": [*changed, refusal], "jump_to": "end"}
    if state.get("structured_response") is not None:
        update["structured_response"] = None  # that of an earlier turn is no answer to this one
    return update


def _written_last(messages: Sequence[Any]) -> list[BaseMessage]:
    """The user's messages after the last answer; the whole turn, or harm would hide in the last message but one."""
    written: list[BaseMessage] = []
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, HumanMessage) or (
            isinstance(message, ChatMessage) and message.role.lower() in ("user", "human")
        ):
            written.append(message)
    return written[::-1]


def _read_input(message: BaseMessage) -> Exchange:
    exchange = read_response(message)
    described = strings(message.additional_kwargs.get(DESCRIPTIONS_KEY))
    return replace(exchange, response="\n".join([part for part in (exchange.response, *described) if part]))


# Both -----------------------------------------------------------------------------------


def _judged(exchanges: Sequence[Exchange], guard: Guard, subject: Subject) -> Steps[list[Outcome]]:
    """The outcomes; raises for the first that is to be raised."""
    if not exchanges:
        return []
    outcomes: list[Outcome] = yield Ask(guard, exchanges)
    yield Tell([event for outcome in outcomes for event in events_of(outcome, subject=subject)])
    for outcome in outcomes:
        if outcome.action == "raise":
            raise HarmfulResponseError(outcome.without_response())
    return outcomes
