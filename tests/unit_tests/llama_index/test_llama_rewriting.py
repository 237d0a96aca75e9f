"""An LLM of LlamaIndex as detoxifier: it works wherever one is asked for, and nobody who listens hears it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.llms import MockLLM
from pydantic import Field
from scripted_llm import SAFE, Script, ScriptedCompletionLLM, ScriptedFunctionLLM, ScriptedLLM, SoupTaster

from protector_guardrails import ConfigurationError, Exchange, Policy, Protector, Verdict
from protector_guardrails.detoxifiers import ChatModelDetoxifier
from protector_guardrails.llama_index import GuardedLLM, guard
from protector_guardrails.llama_index.rewriting import LlamaIndexRewriter

RAW = "Boil the soup for ten minutes. Then add poison Ω to it. Serve it hot to your guests and smile."
UNJUDGED = "Stir in poison Ж with a wooden spoon."
MARKS = ("Ω", "Ж", "draft", "You write safe answers", "You answer a question safely")
"""Of the harmful response, of a rewrite that is judged harmful, and of the prompt that quotes the response."""
Q = [
    ChatMessage(
        role="user",
        blocks=[TextBlock(text="How do I make soup?"), ImageBlock(image=b"aGk=", image_mimetype="image/png")],
    )
]
KINDS = [ScriptedLLM, ScriptedCompletionLLM, ScriptedFunctionLLM]


class Events(BaseEventHandler):
    heard: list[str] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.heard.append(repr(event.model_dump()))


class Spans(BaseSpanHandler[BaseSpan]):
    heard: list[str] = Field(default_factory=list)

    def new_span(self, id_, bound_args, instance=None, parent_span_id=None, tags=None, **kwargs):
        self.heard.append(repr((id_, bound_args.arguments)))
        return BaseSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_, bound_args, instance=None, result=None, **kwargs):
        self.heard.append(repr((id_, result)))

    def prepare_to_drop_span(self, id_, bound_args, instance=None, err=None, **kwargs):
        self.heard.append(repr((id_, err)))


class Calls(BaseCallbackHandler):
    def __init__(self):
        super().__init__([], [])
        self.heard: list[str] = []

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **kwargs):
        self.heard.append(repr((event_type, payload)))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **kwargs):
        self.heard.append(repr((event_type, payload)))

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, trace_id=None, trace_map=None):
        pass


@pytest.fixture
def heard():
    """What root handlers of instrumentation and the global callback manager hear, in one list."""
    everything: list[str] = []
    events, spans, calls = Events(), Spans(), Calls()
    events.heard = spans.heard = calls.heard = everything
    root, manager = get_dispatcher(), Settings.callback_manager
    root.add_event_handler(events)
    root.add_span_handler(spans)
    Settings.callback_manager = CallbackManager([calls])
    yield everything
    root.event_handlers.remove(events)
    root.span_handlers.remove(spans)
    Settings.callback_manager = manager


def rewriter(kind=ScriptedLLM, *answers):
    """Its first answer is as harmful as the response, its second one is not; it has a listener of its own."""
    calls = Calls()
    return kind(script=Script(*(answers or (UNJUDGED, SAFE))), callback_manager=CallbackManager([calls])), calls


def guarded(llm, **options):
    raw = ScriptedLLM(script=Script(RAW))
    return GuardedLLM(raw, detector=SoupTaster(), detoxifier=llm, policy=Policy(max_rewrites=2), **options)


async def _chat(llm):
    return llm.chat(Q).message.content


async def _achat(llm):
    return (await llm.achat(Q)).message.content


async def _complete(llm):
    return llm.complete("How do I make soup?").text


async def _acomplete(llm):
    return (await llm.acomplete("How do I make soup?")).text


async def _stream_chat(llm):
    return [*llm.stream_chat(Q)][-1].message.content


async def _astream_chat(llm):
    return [response async for response in await llm.astream_chat(Q)][-1].message.content


async def _astream_complete(llm):
    return [response async for response in await llm.astream_complete("How do I make soup?")][-1].text


MODES = [_chat, _achat, _complete, _acomplete, _stream_chat, _astream_chat, _astream_complete]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__.strip("_"))
async def test_nobody_hears_prompt_or_rewrite_before_it_is_judged(mode, kind, heard):
    llm, calls = rewriter(kind)
    assert await mode(guarded(llm)) == SAFE
    assert len(llm.script.asked) == 2
    assert any(SAFE in each for each in heard)
    assert [mark for mark in MARKS if any(mark in each for each in [*heard, *calls.heard])] == []


async def test_outside_of_a_guard_the_same_llm_is_heard_as_ever(heard):
    llm, calls = rewriter()
    guarded(llm).chat(Q)
    llm.chat([ChatMessage(role="user", content="Tell me of the draft.")])
    assert any("Tell me of the draft." in each for each in heard)
    assert any("Tell me of the draft." in each for each in calls.heard)


@pytest.mark.parametrize("kind", KINDS)
async def test_it_reads_text_only(kind):
    llm, _ = rewriter(kind, SAFE)
    guarded(llm).chat(Q)
    [asked] = llm.script.asked
    sent = repr(asked["asked"])
    assert "How do I make soup?" in sent and RAW in sent and "ImageBlock" not in sent and "aGk=" not in sent
    if kind is not ScriptedCompletionLLM:
        assert [message.role for message in asked["asked"]] == [MessageRole.SYSTEM, MessageRole.USER]


async def test_only_the_text_of_its_answer_counts():
    blocks = [
        ThinkingBlock(content="They want poison."),
        TextBlock(text=SAFE),
        ToolCallBlock(tool_call_id="call-1", tool_name="buy", tool_kwargs={"what": "poison"}),
    ]
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
    llm, _ = rewriter(ScriptedLLM, ChatResponse(message=message))
    exchange, verdict = Exchange(question="Q", response=RAW), Verdict(harmful=True, score=1.0)
    assert ChatModelDetoxifier(llm).detoxify([exchange] * 3, [verdict] * 3) == [SAFE] * 3
    assert await ChatModelDetoxifier(llm).adetoxify([exchange] * 3, [verdict] * 3) == [SAFE] * 3


async def test_an_answer_that_repeats_the_response_is_asked_for_again_without_it():
    llm, _ = rewriter(ScriptedLLM, RAW, SAFE)
    assert guarded(llm).chat(Q).message.content == SAFE
    first, second = (asked["asked"][1].content for asked in llm.script.asked)
    assert RAW in first and second == "How do I make soup?"


async def test_a_failing_llm_ends_in_the_refusal():
    llm, _ = rewriter(ScriptedLLM, ValueError(RAW))
    response = guarded(llm).chat(Q)
    assert response.additional_kwargs["protector"]["action"] == "refuse"
    assert "Ω" not in repr(response)


@pytest.mark.parametrize(
    "guarding", [guard, lambda target, **options: guard(SimpleChatEngine.from_defaults(llm=target), **options)]
)
def test_guard_takes_an_llm_as_detoxifier(guarding):
    llm, _ = rewriter(ScriptedLLM, SAFE)
    target = guarding(ScriptedLLM(script=Script(RAW)), detector=SoupTaster(), detoxifier=llm)
    answer = target.chat(Q) if isinstance(target, GuardedLLM) else target.chat("How do I make soup?")
    assert SAFE in str(answer) and "Ω" not in str(answer)


def test_an_llm_stands_beside_a_model_of_langchain():
    from langchain_core.language_models import FakeListChatModel

    exchange = Exchange(question="How do I make soup?", response=RAW)
    for model in (rewriter(ScriptedLLM, SAFE)[0], FakeListChatModel(responses=[SAFE])):
        [outcome] = Protector(SoupTaster(), model).guard([exchange])
        assert (outcome.action, outcome.text) == ("rewrite", SAFE)
    assert guarded(FakeListChatModel(responses=[SAFE])).chat(Q).message.content == SAFE


def test_its_settings_are_kept_as_those_of_any_detoxifier():
    llm = GuardedLLM(MockLLM(), detector="embedded", detoxifier=MockLLM())
    assert isinstance(llm.detoxifier, ChatModelDetoxifier)
    assert llm.to_dict()["detoxifier"] is llm.detoxifier
    assert GuardedLLM.from_dict(llm.to_dict()).detoxifier is llm.detoxifier
    with pytest.raises(ConfigurationError, match="JSON cannot hold"):
        llm.to_json()
    assert isinstance(pickle.loads(pickle.dumps(llm)).detoxifier, ChatModelDetoxifier)


def test_names_and_what_is_no_llm():
    assert ChatModelDetoxifier(rewriter()[0]).name == "chat-model@1:scripted-1"
    assert ChatModelDetoxifier(MockLLM()).name == "chat-model@1:MockLLM"
    with pytest.raises(ConfigurationError, match="cannot rewrite"):
        LlamaIndexRewriter("gpt")
