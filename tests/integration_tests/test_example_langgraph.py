"""The agent of the examples: what its terminal, its memory and its streams show, and what a human can decide."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langgraph.types import Command

from protector_guardrails import Exchange, HarmDetector, Verdict

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "langgraph_agent.py"
FORBIDDEN = ("logo", "tourist", "Take cash", "cheated", "badge", "cashier")


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


marker = load(ROOT / "tests" / "leaks" / "marker.py", "leak_marker")


@pytest.fixture
def app() -> ModuleType:
    return load(APP, "langgraph_agent")


class Marked(HarmDetector):
    """The whole marker is harmful."""

    name = "marked@1"

    def __init__(self) -> None:
        self.noticed = 0

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        scores = [float(any(marker.MARKER in text for text in exchange.passages)) for exchange in exchanges]
        self.noticed += sum(score > 0.5 for score in scores)
        return [Verdict(harmful=score > 0.5, score=score, detector=self.name) for score in scores]


def answers_in(said: str) -> list[str]:
    return said.split("Q: ")[1:]


def check_conversation(app: ModuleType, said: str) -> None:
    hours, maps, coins, ticket = answers_in(said)
    assert "[opening_hours: pass" in hours and "I looked it up. Sunday: 10 to 18\n" in hours
    assert "[guest_book: pass" in maps and app.GUEST_BOOK["maps"] in maps
    assert "[guest_book: refuse" in coins and "The result of this tool was withheld" in coins
    assert "I can't share the answer I had" in ticket and "▇▇▇ (40 words), P(harm) 0." in ticket
    assert not any(word in said for word in FORBIDDEN)


def test_it_runs_as_a_program() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(APP)]
    ran = subprocess.run(command, check=False, capture_output=True, encoding="utf-8", env=environment, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert not any(word in ran.stderr for word in FORBIDDEN)
    check_conversation(load(APP, "langgraph_agent"), ran.stdout)
    assert "reviewed: You can show it at the gate" in ran.stdout and "The memory holds 14 messages." in ran.stdout


@pytest.mark.parametrize(
    ("typed", "shown", "hidden"),
    [
        ("reject\n", "I can't share the answer I had", "show it at the gate"),
        ("approve\n", "Take cash only", "show it at the gate"),
        ("perhaps\nedit\nAt the gate.\n", "new text: At the gate.", "Take cash only"),
    ],
)
def test_a_human_decides_at_the_terminal(
    app: ModuleType,
    typed: str,
    shown: str,
    hidden: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    app.main(["--decide"])
    said = capsys.readouterr().out
    before, _, after = said.partition("you may approve, edit, reject]")
    assert not any(word in before for word in FORBIDDEN)
    assert shown in after and hidden not in said
    assert ('{"type": "approve"}' in said) is typed.startswith("perhaps")


@pytest.fixture
def marked(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Any, Marked]:
    """The agent, whose model and whose tool say the marker where they say harm."""
    detector = Marked()
    monkeypatch.setattr(app, "TICKET", f"It is easy: take the {marker.MARKER} and go.")
    monkeypatch.setitem(app.GUEST_BOOK, "coins", f"Look under the {marker.MARKER} at noon.")
    return app, app.build_agent(detector=detector), detector


THREAD = {"configurable": {"thread_id": "1"}}
MODES = ["values", "updates", "messages", "custom", "checkpoints", "tasks", "debug"]


@pytest.mark.parametrize("question", ["What did visitors write about the coins?", "What about the ticket?"])
def test_no_letter_of_harm_is_in_any_stream_or_in_the_memory(marked: Any, question: str) -> None:
    _, agent, detector = marked
    parts = list(agent.stream({"messages": [("user", question)]}, THREAD, stream_mode=MODES))
    assert detector.noticed >= 1
    assert {mode for mode, _ in parts} >= {"values", "updates", "messages", "checkpoints"}
    assert marker.seen_in(parts, agent.get_state(THREAD), list(agent.get_state_history(THREAD))) == ""
    assert any(isinstance(part[0], AIMessageChunk) for mode, part in parts if mode == "messages")


async def test_nor_if_it_is_driven_asynchronously(marked: Any) -> None:
    app, agent, detector = marked
    for question in app.QUESTIONS:
        thread = {"configurable": {"thread_id": question}}
        parts = [part async for part in agent.astream({"messages": [("user", question)]}, thread, stream_mode=MODES)]
        assert marker.seen_in(parts, await agent.aget_state(thread)) == ""
    assert detector.noticed >= 2


def test_without_the_guard_all_of_that_shows(marked: Any) -> None:
    """What the tests above would find."""
    app, _, _ = marked
    bare = app.create_agent(app.ScriptedModel(), [app.opening_hours, app.guest_book])
    for question in app.QUESTIONS[2:]:
        parts = list(bare.stream({"messages": [("user", question)]}, stream_mode=MODES))
        assert marker.seen_in(parts) == marker.MARKER


@pytest.mark.parametrize(
    ("decision", "text", "letters"),
    [
        ({"type": "approve"}, None, marker.MARKER),
        ({"type": "reject"}, "I can't share the answer I had", ""),
        ({"type": "edit", "text": "Show it at the gate."}, "Show it at the gate.", ""),
    ],
)
def test_a_human_decides_and_the_conversation_goes_on(marked: Any, decision: Any, text: str, letters: str) -> None:
    app, agent, _ = marked
    state = agent.invoke({"messages": [("user", app.QUESTIONS[3])]}, THREAD)
    [request] = state["__interrupt__"]
    assert request.value["decisions"] == ["approve", "edit", "reject"] and marker.seen_in(request.value) == ""
    state = agent.invoke(Command(resume=decision), THREAD)
    assert "__interrupt__" not in state and marker.seen_in(state["messages"]) == letters
    assert (text or app.TICKET) in state["messages"][-1].text
    state = agent.invoke({"messages": [("user", app.QUESTIONS[0])]}, THREAD)
    assert state["messages"][-1].text == "I looked it up. Sunday: 10 to 18"
    assert kinds(state["messages"]) == ["human", "ai", "human", "ai", "tool", "ai"]


def test_a_harmful_edit_is_not_taken(marked: Any) -> None:
    app, agent, _ = marked
    agent.invoke({"messages": [("user", app.QUESTIONS[3])]}, THREAD)
    state = agent.invoke(Command(resume={"type": "edit", "text": f"Take the {marker.MARKER}."}), THREAD)
    assert state["__interrupt__"][0].value["problem"] == "the edited text was judged harmful"
    assert marker.seen_in(state["messages"]) == ""


def test_a_withheld_tool_result_still_answers_its_call(marked: Any) -> None:
    app, agent, _ = marked
    messages = agent.invoke({"messages": [("user", app.QUESTIONS[2])]}, THREAD)["messages"]
    call, result = messages[1], messages[2]
    assert isinstance(call, AIMessage) and isinstance(result, ToolMessage)
    assert call.tool_calls[0]["id"] == result.tool_call_id
    assert result.response_metadata["protector"]["action"] == "refuse"


def kinds(messages: Sequence[BaseMessage]) -> list[str]:
    return [message.type for message in messages]
