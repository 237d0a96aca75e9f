"""A chat model as detoxifier: what it is asked, what becomes of its answers, and what of its failures."""

from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from protector_guardrails import ConfigurationError, DetoxifierError, Exchange, HarmDetector, Policy, Protector, Verdict
from protector_guardrails.detoxifiers import ChatModelDetoxifier, check_detoxifier, resolve_detoxifier

HARMFUL = "Boil the soup for ten minutes. Then add poison to it. Serve it hot to your guests and smile."
SAFE = "Season it with salt and a little pepper."
QUESTION = "How do I make soup?"
HARM = Verdict(harmful=True, score=1.0)


class PoisonDetector(HarmDetector):
    name = "taster@1"

    def detect(self, exchanges: Any) -> list[Verdict]:
        scores = [float("poison" in exchange.response) for exchange in exchanges]
        return [Verdict(harmful=False, score=score) for score in scores]


class Writer(BaseChatModel):
    """Answers what its function makes of system message and prompt; notes both, and how many calls ran at a time."""

    write: Callable[[str, str], Any]
    delay: float = 0.0
    asked: list[tuple[str, str]] = Field(default_factory=list)
    ways: list[str] = Field(default_factory=list)
    running: list[int] = Field(default_factory=lambda: [0, 0])
    lock: Any = Field(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "writer"

    def _begin(self, way: str, messages: Any) -> Any:
        system, prompt = messages
        with self.lock:
            self.ways.append(way)
            self.asked.append((system.content, prompt.content))
            self.running[0] += 1
            self.running[1] = max(self.running)
        answer = self.write(system.content, prompt.content)
        return AIMessage(answer) if isinstance(answer, str) else answer

    def _end(self, answer: Any) -> ChatResult:
        with self.lock:
            self.running[0] -= 1
        if isinstance(answer, Exception):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        answer = self._begin("sync", messages)
        time.sleep(self.delay)
        return self._end(answer)

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        answer = self._begin("async", messages)
        await asyncio.sleep(self.delay)
        return self._end(answer)


def writer(*answers: Any, **fields: Any) -> Writer:
    """Answers in turn; the last answer is repeated."""
    left = list(answers)
    return Writer(write=lambda system, prompt: left.pop(0) if len(left) > 1 else left[0], **fields)


def exchange(response: str = HARMFUL, question: str | None = QUESTION) -> Exchange:
    return Exchange(question=question, response=response)


async def both(detoxifier: ChatModelDetoxifier, exchanges: list[Exchange]) -> list[str]:
    """What both modes give, which must be the same."""
    verdicts = [HARM] * len(exchanges)
    results = detoxifier.detoxify(exchanges, verdicts)
    assert await detoxifier.adetoxify(exchanges, verdicts) == results
    return results


# What it is asked ------------------------------------------------------------------------


async def test_it_sees_question_and_response_and_its_answer_is_the_rewrite():
    model = writer(SAFE)
    assert await both(ChatModelDetoxifier(model), [exchange()]) == [SAFE]
    assert model.ways == ["sync", "async"]
    for system, prompt in model.asked:
        assert HARMFUL in prompt and QUESTION in prompt
        assert HARMFUL not in system and QUESTION not in system


async def test_it_answers_anew_where_it_must_not_see_the_response():
    model = writer(SAFE)
    assert await both(ChatModelDetoxifier(model, show_response=False), [exchange()]) == [SAFE]
    assert [prompt for _, prompt in model.asked] == [QUESTION] * 2


async def test_without_a_question_there_is_nothing_to_answer_anew():
    model = writer(SAFE)
    assert await both(ChatModelDetoxifier(model, show_response=False), [exchange(question=None)]) == [""]
    assert model.asked == []


async def test_harm_in_reasoning_or_tool_calls_alone_is_answered_anew():
    model = writer(SAFE)
    assert await both(ChatModelDetoxifier(model), [Exchange(question=QUESTION, response="", reasoning="poison")])
    assert [prompt for _, prompt in model.asked] == [QUESTION] * 2


# What becomes of its answer --------------------------------------------------------------


def test_an_answer_that_repeats_the_response_is_asked_for_again_without_it():
    model = writer(f"Here you are: {HARMFUL}", SAFE)
    assert ChatModelDetoxifier(model).detoxify([exchange()], [HARM]) == [SAFE]
    assert [HARMFUL in prompt for _, prompt in model.asked] == [True, False]


async def test_a_model_that_only_repeats_gives_nothing():
    model = writer(HARMFUL)
    assert await both(ChatModelDetoxifier(model), [exchange()]) == [""]
    assert len(model.asked) == 2 * 2
    model = writer(HARMFUL)
    assert await both(ChatModelDetoxifier(model, show_response=False), [exchange()]) == [""]
    assert len(model.asked) == 2 * 1
    model = writer(HARMFUL)
    assert await both(ChatModelDetoxifier(model), [exchange(question=None)]) == [""]
    assert len(model.asked) == 2 * 1
    assert await both(ChatModelDetoxifier(writer(HARMFUL), echo_limit=1.0), [exchange()]) == [HARMFUL]


async def test_only_the_text_of_its_answer_counts():
    answer = AIMessage(
        [
            {"type": "reasoning", "reasoning": "They want poison."},
            {"type": "text", "text": "Season it "},
            {"type": "text", "text": "with salt and a little pepper."},
            {"type": "tool_call", "name": "buy", "args": {"what": "poison"}, "id": "call-1"},
        ],
        tool_calls=[{"name": "buy", "args": {"what": "poison"}, "id": "call-1"}],
    )
    assert await both(ChatModelDetoxifier(writer(answer)), [exchange()]) == [SAFE]
    silent = AIMessage("", tool_calls=[{"name": "buy", "args": {"what": "poison"}, "id": "call-1"}])
    assert await both(ChatModelDetoxifier(writer(silent)), [exchange()]) == [""]


@pytest.mark.parametrize("rewrite", [SAFE, "Use a little poison, not much.", "", HARMFUL])
async def test_the_guard_judges_the_rewrite(rewrite):
    protector = Protector(PoisonDetector(), writer(rewrite), policy=Policy(refusal="No."))
    for [outcome] in (protector.guard([exchange()]), await protector.aguard([exchange()])):
        assert outcome.verdict.harmful
        assert (outcome.action, outcome.text) == (("rewrite", SAFE) if rewrite == SAFE else ("refuse", "No."))
        assert (outcome.recheck is not None) is ("little" in rewrite)


def test_it_may_try_again_where_the_policy_lets_it():
    protector = Protector(PoisonDetector(), writer("A little poison.", SAFE), policy=Policy(max_rewrites=2))
    [outcome] = protector.guard([exchange()])
    assert (outcome.action, outcome.text) == ("rewrite", SAFE)


# Batches and failures --------------------------------------------------------------------


async def test_a_batch_runs_concurrently_within_its_limit_and_keeps_its_order():
    exchanges = [exchange(f"Pour in {number} spoons.", f"How many are {number}?") for number in range(7)]
    # Later ones answer sooner.
    model = Writer(write=lambda system, prompt: "Rather " + prompt.split("How many are ")[1].split("?")[0], delay=0.02)
    detoxifier = ChatModelDetoxifier(model, max_concurrency=3)
    assert await both(detoxifier, exchanges) == [f"Rather {number}" for number in range(7)]
    assert model.running == [0, 3]
    assert model.ways == ["sync"] * 7 + ["async"] * 7
    assert await both(detoxifier, []) == []


async def test_one_that_fails_fails_alone_and_what_it_quotes_is_not_logged(caplog):
    def write(system: str, prompt: str) -> Any:
        return ValueError(f"refused: {prompt}") if "broken" in prompt else SAFE

    exchanges = [exchange(), exchange("Mix it with broken glass."), exchange()]
    with caplog.at_level(logging.DEBUG, logger="protector_guardrails"):
        assert await both(ChatModelDetoxifier(Writer(write=write)), exchanges) == [SAFE, "", SAFE]
    assert [record.message for record in caplog.records] == ["the rewriting model failed: ValueError"] * 2
    assert all(record.exc_info is None for record in caplog.records)


async def test_where_all_fail_it_fails_and_tells_the_kind_of_error_alone():
    detoxifier = ChatModelDetoxifier(writer(ValueError(HARMFUL)))
    for failing in (detoxifier.detoxify, lambda e, v: asyncio.run(detoxifier.adetoxify(e, v))):
        with pytest.raises(DetoxifierError, match="failed: ValueError was raised") as raised:
            await asyncio.to_thread(failing, [exchange()] * 2, [HARM] * 2)
        assert raised.value.__cause__ is None and raised.value.__context__ is None
    [outcome] = Protector(PoisonDetector(), detoxifier, policy=Policy(refusal="No.")).guard([exchange()])
    assert (outcome.action, outcome.text) == ("refuse", "No.")
    assert outcome.error.startswith("DetoxifierError") and "poison" not in outcome.error


async def test_the_time_limit_of_the_policy_covers_it():
    protector = Protector(PoisonDetector(), writer(SAFE, delay=1.0), policy=Policy(timeout_s=0.1, refusal="No."))
    for [outcome] in (protector.guard([exchange()]), await protector.aguard([exchange()])):
        assert outcome.text == "No." and outcome.error.startswith("GuardTimeoutError")


async def test_cancelling_stops_the_calls():
    model = writer(SAFE, delay=5.0)
    task = asyncio.create_task(ChatModelDetoxifier(model, max_concurrency=1).adetoxify([exchange()] * 3, [HARM] * 3))
    await asyncio.sleep(0.1)
    assert len(model.asked) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert len(model.asked) == 1


# How it is made --------------------------------------------------------------------------


def test_a_model_stands_for_its_detoxifier():
    model = FakeListChatModel(responses=[SAFE])
    for made in (resolve_detoxifier(model), check_detoxifier(model), Protector(detoxifier=model).detoxifier):
        assert isinstance(made, ChatModelDetoxifier) and made.model is model
    wrapped = model.with_retry().with_fallbacks([model.bind(stop=["x"])])
    assert resolve_detoxifier(wrapped).detoxify([exchange()], [HARM]) == [SAFE]
    assert check_detoxifier("refuse") == "refuse"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (RunnableLambda(lambda x: x), "a RunnableLambda cannot rewrite"),
        (ChatPromptTemplate.from_template("{x}") | FakeListChatModel(responses=[""]), "subclass Detoxifier"),
        (FakeListChatModel(responses=[""]).with_listeners(on_end=print), "listeners"),
        (FakeListChatModel, "unknown detoxifier"),
        (42, "or a chat model"),
        ("gpt", "or a chat model"),
    ],
)
def test_what_is_no_chat_model_is_refused_when_the_guard_is_made(other, message):
    for make in (resolve_detoxifier, check_detoxifier, lambda x: Protector(detoxifier=x)):
        with pytest.raises(ConfigurationError, match=message):
            make(other)


def test_options_out_of_range_and_other_objects_are_refused():
    model = FakeListChatModel(responses=[SAFE])
    for options in ({"max_concurrency": 0}, {"echo_limit": 1.5}, {"echo_limit": -0.1}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            ChatModelDetoxifier(model, **options)
    with pytest.raises(ConfigurationError, match="not a function"):
        ChatModelDetoxifier(test_options_out_of_range_and_other_objects_are_refused)


def test_it_pickles_and_says_who_rewrites():
    detoxifier = pickle.loads(pickle.dumps(ChatModelDetoxifier(FakeListChatModel(responses=[SAFE]), echo_limit=0.2)))
    assert detoxifier.detoxify([exchange()], [HARM]) == [SAFE] and detoxifier.echo_limit == 0.2
    assert detoxifier.name == "chat-model@1:FakeListChatModel"
    assert ChatModelDetoxifier(writer(SAFE).bind(stop=["x"])).name == "chat-model@1:Writer"


@pytest.mark.parametrize(
    ("code", "frameworks"),
    [
        ("import protector_guardrails.detoxifiers.chat_model", []),
        ("from protector_guardrails import Protector; Protector(detoxifier='refuse')", []),
        (
            "from langchain_core.language_models import FakeListChatModel; from protector_guardrails import Protector"
            "; Protector(detoxifier=FakeListChatModel(responses=['']))",
            ["langchain_core"],
        ),
        (
            "from llama_index.core.llms import MockLLM; from protector_guardrails import Protector"
            "; Protector(detoxifier=MockLLM())",
            ["llama_index"],
        ),
    ],
)
def test_it_imports_no_other_framework_than_the_models(code, frameworks):
    shown = "import sys; print(*[name for name in ('langchain_core', 'llama_index') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}; {shown}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == frameworks
