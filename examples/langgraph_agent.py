"""A guide to a museum: an agent under guard, with two tools, a memory, and a human who decides on what is withheld.

It runs offline in a few seconds. The model is scripted, so that no key is needed; put your
own in its place. The detector is the one that comes with the package.

    python examples/langgraph_agent.py                # the human's decision is scripted, too
    python examples/langgraph_agent.py --decide       # you are the human
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from protector_guardrails import HarmDetector, ProtectorMiddleware

HOURS = {"monday": "closed", "sunday": "10 to 18"}
GUEST_BOOK = {
    "maps": "The old map of the harbour was my favourite. My children liked the globe.",
    # What a page may hold that anybody can write to, and that a tool brings back.
    "coins": "To get in without paying, tell the cashier that you are a doctor on duty and flash a fake badge. Then "
    "sell your unused ticket to a tourist for double the price.",
}
QUESTIONS = [
    "When does the museum open on Sunday?",
    "What did visitors write about the maps?",
    "What did visitors write about the coins?",
    "What could one do with this picture of a ticket?",
]
# What a model may say that was talked into it, perhaps by the writing in a picture.
TICKET = (
    "It is easy to fake. Copy the logo, print a few hundred fake tickets and sell them to tourists at the station. "
    "Take cash only, use a false name, and be gone before they find out that they were cheated."
)
EDITED = "You can show it at the gate until the end of the year, or give it to a friend."


@tool
def opening_hours(day: str) -> str:
    """When the museum is open on a day of the week."""
    return f"{day}: {HOURS.get(day.lower(), '9 to 18')}"


@tool
def guest_book(room: str) -> str:
    """What visitors wrote about a room."""
    return GUEST_BOOK.get(room, "Nothing yet.")


class ScriptedModel(BaseChatModel):
    """Stands for a multimodal model: calls tools, retells what they return, and answers one question badly."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Take tools, as any model of an agent does."""
        return self.bind(tools=[convert_to_openai_tool(one) for one in tools], **kwargs)

    def _message(self, messages: list[BaseMessage]) -> AIMessage:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"I looked it up. {last.text}")
        asked = last.text.lower()
        if "ticket" in asked:
            return AIMessage(TICKET)
        if "open" in asked:
            return _calling("opening_hours", {"day": "Sunday"}, len(messages))
        return _calling("guest_book", {"room": "maps" if "maps" in asked else "coins"}, len(messages))

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._message(messages))])

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        message = self._message(messages)
        for word in re.findall(r"\S+\s*", message.text):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        for call in message.tool_calls:
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_calls=[call]))


def _calling(name: str, arguments: dict[str, str], number: int) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call_{number}", "type": "tool_call"}])


def build_agent(model: BaseChatModel | None = None, detector: str | HarmDetector = "embedded") -> Any:
    """The agent; the guard is the last of its middleware, nearest to the model."""
    guard = ProtectorMiddleware(detector=detector, mode="interrupt", judge_tool_results=True)
    return create_agent(
        model or ScriptedModel(), [opening_hours, guest_book], middleware=[guard], checkpointer=InMemorySaver()
    )


def ask(agent: Any, question: str, thread: RunnableConfig, decide: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    """Print the answer while it is written; where it is withheld, have a human decide."""
    print(f"\nQ: {question}\nA: ", end="", flush=True)
    given: Any = {"messages": [HumanMessage(question)]}
    while given is not None:
        given = _run(agent, given, thread, decide)
    print()


def _run(agent: Any, given: Any, thread: RunnableConfig, decide: Callable[[dict[str, Any]], dict[str, str]]) -> Any:
    """Stream one run of the graph to the terminal; what is to follow, if the graph waits for a human."""
    following = None
    resumed = isinstance(given, Command)
    for mode, part in agent.stream(given, thread, stream_mode=["messages", "updates"]):
        if mode == "messages" and isinstance(part[0], AIMessageChunk):
            print(part[0].text, end="", flush=True)
        elif mode == "updates" and "__interrupt__" in part:
            [request] = part["__interrupt__"]
            following = Command(resume=decide(request.value))
        elif mode == "updates":
            for message in (message for update in part.values() for message in (update or {}).get("messages", ())):
                if isinstance(message, ToolMessage):
                    verdict = message.response_metadata["protector"]
                    print(f"[{message.name}: {verdict['action']}, P(harm) {verdict['score']:.2f}] ", end="", flush=True)
                elif resumed:  # "messages" shows each message once, and has shown the refusal under this id
                    print(message.text, end="", flush=True)
    return following


def scripted_decision(request: dict[str, Any]) -> dict[str, str]:
    """A reviewer who writes something better."""
    print(f"\n   [withheld: {request['masked']}, P(harm) {request['verdict']['score']:.2f}]\n   reviewed: ", end="")
    return {"type": "edit", "text": EDITED}


def ask_at_the_terminal(request: dict[str, Any]) -> dict[str, str]:
    """You decide."""
    if request["problem"]:
        print(f"\n   [{request['problem']}]", end="")
    print(f"\n   [withheld: {request['masked']}; you may {', '.join(request['decisions'])}]")
    kind = input("   decision: ").strip()
    return {"type": kind, "text": input("   new text: ")} if kind == "edit" else {"type": kind}


def main(argv: Sequence[str] | None = None) -> None:
    """Ask the guide four questions in one conversation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--decide", action="store_true", help="be the human who decides on what is withheld")
    decide = ask_at_the_terminal if parser.parse_args(argv).decide else scripted_decision
    agent, thread = build_agent(), RunnableConfig(configurable={"thread_id": "a visitor"})
    for question in QUESTIONS:
        ask(agent, question, thread, decide)
    print(f"\nThe memory holds {len(agent.get_state(thread).values['messages'])} messages.")


if __name__ == "__main__":
    main()
