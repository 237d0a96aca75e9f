"""A LangChain model as detoxifier: it works wherever one is asked for, and nobody who listens hears it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_debug, set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda, RunnablePassthrough
from langchain_fakes import SAFE, FixedDetoxifier, PoisonDetector
from langgraph.graph import START, MessagesState, StateGraph
from scripted_model import ScriptedModel

from protector_guardrails import DetoxifierRunnable, Exchange, HarmDetectorRunnable, Policy, Verdict, protect
from protector_guardrails.detoxifiers import ChatModelDetoxifier
from protector_guardrails.langchain.private import _Deaf

RAW = "Boil the soup for ten minutes. Then add poison Ω to it. Serve it hot to your guests and smile."
UNJUDGED = "Stir in poison Ж with a wooden spoon."
MARKS = ("Ω", "Ж", "draft", "You write safe answers", "You answer a question safely")
"""Of the harmful response, of a rewrite that is judged harmful, and of the prompt that quotes the response."""
QUESTION = HumanMessage(
    [{"type": "text", "text": "How do I make soup?"}, {"type": "image", "base64": "aGk=", "mime_type": "image/png"}]
)
POLICY = Policy(max_rewrites=2)


class Ear(BaseCallbackHandler):
    """Hears everything, with chunks and outputs as they are."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.models = 0

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.models += 1
        self.heard.append(repr((messages, kwargs)))


def _hear(name: str) -> None:
    def heard(self: Ear, *args: Any, **kwargs: Any) -> None:
        self.heard.append(repr((name, args, kwargs)))

    setattr(Ear, name, heard)


for _name in dir(BaseCallbackHandler):
    if _name.startswith("on_") and _name != "on_chat_model_start":
        _hear(_name)


def rewriter() -> ScriptedModel:
    """Its first answer is as harmful as the response, its second one is not."""
    return ScriptedModel(answers=[UNJUDGED, SAFE], seen=[])


def chain(detoxifier: Any) -> Any:
    model = ScriptedModel(answers=[RAW], seen=[])
    return model | HarmDetectorRunnable(PoisonDetector(), policy=POLICY) | DetoxifierRunnable(detoxifier)


def protected(detoxifier: Any) -> Any:
    model = ScriptedModel(answers=[RAW], seen=[])
    return protect(model, detector=PoisonDetector(), detoxifier=detoxifier, policy=POLICY)


async def _invoke(runnable: Any, config: RunnableConfig) -> Any:
    return runnable.invoke([QUESTION], config).text


async def _ainvoke(runnable: Any, config: RunnableConfig) -> Any:
    return (await runnable.ainvoke([QUESTION], config)).text


async def _batch(runnable: Any, config: RunnableConfig) -> Any:
    return runnable.batch([[QUESTION]], config)[0].text


async def _stream(runnable: Any, config: RunnableConfig) -> Any:
    return "".join(chunk.text for chunk in runnable.stream([QUESTION], config))


async def _astream(runnable: Any, config: RunnableConfig) -> Any:
    return "".join([chunk.text async for chunk in runnable.astream([QUESTION], config)])


async def _astream_events(runnable: Any, config: RunnableConfig) -> Any:
    events = [event async for event in runnable.astream_events([QUESTION], config, version="v2")]
    config["callbacks"][0].heard.extend(map(repr, events))  # type: ignore[index, union-attr]
    return events[-1]["data"]["output"].text


MODES = [_invoke, _ainvoke, _batch, _stream, _astream, _astream_events]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__.strip("_"))
async def test_around_a_protected_model_nothing_harmful_is_heard(mode):
    ear, model = Ear(), rewriter()
    application = RunnablePassthrough() | protected(model)  # whose config is that of every run within it
    assert await mode(application, {"callbacks": [ear]}) == SAFE
    assert len(model.seen) == 2 and ear.models == 1
    assert any(SAFE in heard for heard in ear.heard)
    assert [mark for mark in MARKS if any(mark in heard for heard in ear.heard)] == []


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__.strip("_"))
async def test_in_a_bare_chain_the_rewriting_model_is_not_heard(mode):
    """What the first model says is heard there, as documented, but no more often than without a model that rewrites."""
    ear, model, before = Ear(), rewriter(), Ear()
    assert await mode(chain(model), {"callbacks": [ear]}) == SAFE
    assert await mode(chain(FixedDetoxifier(SAFE)), {"callbacks": [before]}) == SAFE
    assert len(model.seen) == 2 and ear.models == 1
    assert [mark for mark in MARKS[1:] if any(mark in heard for heard in ear.heard)] == []
    assert sum("Ω" in heard for heard in ear.heard) == sum("Ω" in heard for heard in before.heard) > 0


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_in_a_graph_no_mode_of_streaming_shows_it(way):
    model = rewriter()
    answering = protected(model)

    async def answer(state: MessagesState) -> Any:
        return {"messages": [await answering.ainvoke(state["messages"])]}

    def answer_now(state: MessagesState) -> Any:
        return {"messages": [answering.invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("answer", answer if way == "astream" else answer_now)
    app, ear = graph.add_edge(START, "answer").compile(), Ear()
    modes: Any = ["messages", "updates", "values", "debug"]
    given: Any = {"messages": [QUESTION]}
    if way == "stream":
        shown = list(app.stream(given, {"callbacks": [ear]}, stream_mode=modes))
    else:
        shown = [part async for part in app.astream(given, {"callbacks": [ear]}, stream_mode=modes)]
    assert SAFE in repr(shown) and len(model.seen) == 2
    assert [mark for mark in MARKS if mark in repr(shown) + repr(ear.heard)] == []


def test_debug_output_caches_and_the_models_own_callbacks_do_not_have_it(capsys):
    ear, cache = Ear(), InMemoryCache()
    model = rewriter().model_copy(update={"callbacks": [ear], "cache": True})
    set_debug(True)
    set_llm_cache(cache)
    try:
        assert protected(model).invoke([QUESTION]).text == SAFE
    finally:
        set_debug(False)
        set_llm_cache(None)
    assert ear.heard == []
    assert [mark for mark in MARKS if mark in capsys.readouterr().out + repr(vars(cache))] == []


def test_the_image_is_withheld_and_its_description_is_not():
    model = rewriter()
    question = QUESTION.model_copy(update={"additional_kwargs": {"image_descriptions": ["a pot on a stove"]}})
    protected(model).invoke([question])
    first, _ = model.seen
    system, prompt = first["messages"]
    assert isinstance(system.content, str) and isinstance(prompt.content, str)
    assert "How do I make soup?\n[image: a pot on a stove]" in prompt.content and RAW in prompt.content
    assert "aGk=" not in prompt.content


def test_the_multimodal_model_may_rewrite_its_own_answers():
    model = ScriptedModel(answers=[RAW, SAFE], seen=[])
    assert protect(model, detector=PoisonDetector(), detoxifier=model).invoke([QUESTION]).text == SAFE
    assert "aGk=" in repr(model.seen[0]["messages"]) and "aGk=" not in repr(model.seen[1]["messages"])


def test_the_recorder_takes_the_prompt_for_no_question():
    detector = PoisonDetector()
    runnable = ScriptedModel(answers=[RAW], seen=[]) | HarmDetectorRunnable(detector) | DetoxifierRunnable(rewriter())
    runnable.batch([[QUESTION], [QUESTION]])
    assert set(detector.questions.values()) == {"How do I make soup?"}


def test_a_model_that_always_repeats_ends_in_the_refusal():
    answer = protect(
        ScriptedModel(answers=[RAW], seen=[]),
        detector=PoisonDetector(),
        detoxifier=ScriptedModel(answers=[RAW], seen=[]),
        policy={"refusal": "No."},
    ).invoke([QUESTION])
    assert answer.text == "No." and answer.response_metadata["protector"]["action"] == "refuse"


def test_a_model_whose_kind_is_configured_later():
    model = FakeListChatModel(responses=["Ж"]).configurable_alternatives(
        ConfigurableField("cook"), default_key="one", two=FakeListChatModel(responses=[SAFE])
    )
    rewriting = ChatModelDetoxifier(model.with_config(configurable={"cook": "two"}))
    assert protected(rewriting).invoke([QUESTION]).text == SAFE
    runnable = DetoxifierRunnable("refuse", detector=PoisonDetector()).configurable_fields(
        detoxifier=ConfigurableField("detoxifier")
    )
    chosen = runnable.with_config(configurable={"detoxifier": FakeListChatModel(responses=[SAFE])})
    assert chosen.invoke(RAW) == SAFE


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_written_down_it_is_what_any_detoxifier_of_ones_own_is():
    model = FakeListChatModel(responses=[SAFE])
    written, other = (dumpd(DetoxifierRunnable(given)) for given in (model, FixedDetoxifier(SAFE)))
    assert written["kwargs"]["detoxifier"]["type"] == other["kwargs"]["detoxifier"]["type"] == "not_implemented"
    assert "ChatModelDetoxifier" in written["kwargs"]["detoxifier"]["id"]
    with pytest.raises(NotImplementedError):
        load(written, allowed_objects=[DetoxifierRunnable], valid_namespaces=["protector_guardrails"])


def test_a_protected_model_names_it_in_the_key_of_its_cache():
    one, two = (protected(FakeListChatModel(responses=[SAFE])), protected(rewriter()))
    assert "chat-model@1:FakeListChatModel" in one._get_llm_string()
    assert "chat-model@1:scripted-1" in two._get_llm_string()


async def test_in_an_agent():
    agents = pytest.importorskip("langchain.agents")
    from protector_guardrails import ProtectorMiddleware

    model = rewriter()
    guard = ProtectorMiddleware(detector=PoisonDetector(), detoxifier=model, policy=POLICY)
    agent, ear = agents.create_agent(ScriptedModel(answers=[RAW], seen=[]), middleware=[guard]), Ear()
    state = await agent.ainvoke({"messages": [QUESTION]}, {"callbacks": [ear]})
    assert state["messages"][-1].text == SAFE
    assert [mark for mark in MARKS if mark in repr(state) + repr(ear.heard)] == []


class Watching(ScriptedModel):
    """Notes who listens to its runs."""

    handlers: ClassVar[list[Any]] = []

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        self.handlers.append([*run_manager.handlers])
        return super()._generate(messages, stop, run_manager, **kwargs)


def test_within_a_run_of_the_application_nobody_listens_to_it():
    detoxifier = ChatModelDetoxifier(Watching(answers=[SAFE], seen=[]))
    exchange, verdict = Exchange(question="Q", response=RAW), Verdict(harmful=True, score=1.0)
    step = RunnableLambda(lambda _: detoxifier.detoxify([exchange] * 3, [verdict] * 3))
    assert step.invoke("go", {"callbacks": [Ear()]}) == [SAFE] * 3
    # A deaf handler takes the place of one that an environment variable asks for, and hears nothing.
    assert [[type(handler) for handler in call if type(handler) is not _Deaf] for call in Watching.handlers] == [[]] * 3
