"""The detector learns the question in every mode, and nobody else's."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any

import pytest
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_fakes import HARMFUL, SAFE, EchoModel, FixedDetoxifier, PoisonDetector

from protector_guardrails import DetoxifierRunnable, HarmDetector, HarmDetectorRunnable, Verdict
from protector_guardrails.langchain.messages import Question
from protector_guardrails.langchain.recorder import QuestionRecorder, install_recorder

MODES = ["invoke", "ainvoke", "batch", "abatch", "stream", "astream", "astream_events"]
ASKED = ["one", "two", "three"]


async def run(chain: Runnable[Any, Any], mode: str, questions: list[str]) -> None:
    if mode == "batch":
        chain.batch(questions)
    elif mode == "abatch":
        await chain.abatch(questions)
    else:
        for question in questions:
            if mode == "invoke":
                chain.invoke(question)
            elif mode == "ainvoke":
                await chain.ainvoke(question)
            elif mode == "stream":
                list(chain.stream(question))
            elif mode == "astream":
                [_ async for _ in chain.astream(question)]
            else:
                [_ async for _ in chain.astream_events(question, version="v2")]


def piped(guard: Any) -> Any:
    return EchoModel() | guard


def in_parallel(guard: Any) -> Any:
    return RunnableParallel(guarded=EchoModel() | guard, other=EchoModel(prefix="other "))


def nested(guard: Any) -> Any:
    return RunnablePassthrough() | (RunnablePassthrough() | EchoModel()) | (RunnablePassthrough() | guard)


def fanned_out(guard: Any) -> Any:
    return EchoModel() | {"guarded": guard, "raw": RunnablePassthrough()}


def over_a_lambda(guard: Any) -> Any:
    return EchoModel() | RunnableLambda(lambda message: message) | guard


def inside_a_lambda(guard: Any) -> Any:
    return EchoModel() | RunnableLambda(guard.invoke, afunc=guard.ainvoke)


def retried(guard: Any) -> Any:
    return EchoModel().with_retry() | guard.with_retry()


def falling_back(guard: Any) -> Any:
    return EchoModel().with_fallbacks([EchoModel()]) | guard.with_fallbacks([guard])


def as_text(guard: Any) -> Any:
    return EchoModel() | StrOutputParser() | guard


def as_text_retried(guard: Any) -> Any:
    return EchoModel() | StrOutputParser() | guard.with_retry()


def as_dict_without_question(guard: Any) -> Any:
    return {"response": EchoModel()} | guard


def as_text_falling_back(guard: Any) -> Any:
    return EchoModel() | StrOutputParser() | guard.with_fallbacks([guard])


def as_text_fanned_out(guard: Any) -> Any:
    return EchoModel() | StrOutputParser() | {"guarded": guard, "raw": RunnablePassthrough()}


def as_text_after_another_model(guard: Any) -> Any:
    return after_another_model(StrOutputParser() | guard)


def named(guard: Any) -> Any:
    return EchoModel() | StrOutputParser() | guard.with_config(run_name="mine")


def explicit(guard: Any) -> Any:
    return {"question": RunnablePassthrough(), "response": EchoModel()} | guard


def explicit_text(guard: Any) -> Any:
    return {"question": RunnablePassthrough(), "response": EchoModel() | StrOutputParser()} | guard


def after_another_model(guard: Any) -> Any:
    # The first model is asked something else than the one whose answer is judged.
    ask_first = RunnableLambda(lambda text: f"first {text}")
    rephrase = EchoModel(prefix="") | RunnableLambda(lambda message: message.text.removeprefix("first "))
    return ask_first | rephrase | EchoModel() | guard


def bound(guard: Any) -> Any:
    return EchoModel().bind(stop=["x"]) | guard.with_config(tags=["t"], run_name="named")


SHAPES = [
    piped,
    in_parallel,
    nested,
    fanned_out,
    over_a_lambda,
    inside_a_lambda,
    retried,
    falling_back,
    as_text,
    as_text_retried,
    as_text_falling_back,
    as_text_fanned_out,
    as_text_after_another_model,
    named,
    as_dict_without_question,
    explicit,
    explicit_text,
    after_another_model,
    bound,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
async def test_the_question_is_found(shape: Any, mode: str) -> None:
    detector = PoisonDetector()
    await run(shape(HarmDetectorRunnable(detector)), mode, ASKED)
    assert detector.questions == {f"about {question}": question for question in ASKED}


@pytest.mark.parametrize("mode", MODES)
async def test_a_message_shared_by_all_of_a_batch(mode: str) -> None:
    """By its id alone every item would get the last question."""
    shared = AIMessage(SAFE)
    asked: list[Any] = []

    class Noting(PoisonDetector):
        def detect(self, exchanges: Any) -> list[Verdict]:
            asked.extend(exchange.question for exchange in exchanges)
            return super().detect(exchanges)

    model = FakeMessagesListChatModel(responses=[shared])
    await run(model | HarmDetectorRunnable(Noting()), mode, ASKED)
    assert sorted(asked) == sorted(ASKED)


def test_a_model_called_on_its_own() -> None:
    detector = PoisonDetector()
    guard = HarmDetectorRunnable(detector)
    answers = [EchoModel().invoke(question) for question in ASKED]
    guard.batch(answers)
    assert detector.questions == {f"about {question}": question for question in ASKED}


def test_the_last_human_turn_with_its_image() -> None:
    detector = PoisonDetector()
    image = {"type": "image", "base64": "QUJD", "mime_type": "image/png"}
    asked = HumanMessage(
        content=[{"type": "text", "text": "And this?"}, image],
        additional_kwargs={"image_descriptions": ["a red cap"]},
    )
    model = GenericFakeChatModel(messages=iter([AIMessage(SAFE)]))
    turns = [SystemMessage("be kind"), HumanMessage("first"), AIMessage("ok"), asked]
    (model | HarmDetectorRunnable(detector)).invoke(turns)
    [[exchange]] = detector.batches
    assert exchange.judged_question == "And this?\n[image: a red cap]"
    assert exchange.images[0].data is None


def test_a_completion_model() -> None:
    detector = PoisonDetector()
    (FakeListLLM(responses=[SAFE]) | HarmDetectorRunnable(detector)).invoke("Soup?")
    assert detector.questions == {SAFE: "Soup?"}


def test_a_plain_function_is_judged_without_question() -> None:
    detector = PoisonDetector()
    EchoModel().invoke("somebody else's question")
    (RunnableLambda(lambda _: SAFE) | HarmDetectorRunnable(detector)).invoke("unknown")
    assert detector.questions == {SAFE: None}


def test_the_explicit_question_wins() -> None:
    detector = PoisonDetector()
    chain = {"question": RunnableLambda(lambda _: "explicit"), "response": EchoModel()} | HarmDetectorRunnable(detector)
    chain.invoke("recorded")
    assert detector.questions == {"about recorded": "explicit"}


def test_opting_out() -> None:
    detector = PoisonDetector()
    (EchoModel() | HarmDetectorRunnable(detector, record_questions=False)).invoke("Soup?")
    assert detector.questions == {"about Soup?": None}


def test_a_detector_that_asks_a_model_does_not_change_the_question() -> None:
    class Judge(HarmDetector):
        name = "judge@1"

        def detect(self, exchanges: Any) -> list[Verdict]:
            EchoModel().invoke("Is this harmful?")
            return [Verdict(harmful=False, score=float("poison" in e.response), detector=self.name) for e in exchanges]

    detoxifier = FixedDetoxifier("Salt.")
    chain = (
        EchoModel(prefix=HARMFUL) | StrOutputParser() | HarmDetectorRunnable(Judge()) | DetoxifierRunnable(detoxifier)
    )
    assert chain.invoke("Soup?") == "Salt."
    assert RunnableLambda(chain.batch).invoke(["Cake?", "Pie?"]) == ["Salt.", "Salt."]
    assert [exchange.question for exchange in detoxifier.asked] == ["Soup?", "Cake?", "Pie?"]


def test_threads_do_not_mix() -> None:
    detector = PoisonDetector()
    chain = EchoModel() | HarmDetectorRunnable(detector)
    threads = [threading.Thread(target=chain.invoke, args=(f"question {i}",)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert detector.questions == {f"about question {i}": f"question {i}" for i in range(24)}


async def test_langgraph_nodes() -> None:
    graph = pytest.importorskip("langgraph.graph")
    detector = PoisonDetector()
    guard, rewrite, model = (
        HarmDetectorRunnable(detector),
        DetoxifierRunnable("redact"),
        EchoModel(prefix=HARMFUL + " "),
    )
    builder = graph.StateGraph(graph.MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("guard", lambda state: {"messages": [rewrite.invoke(guard.invoke(state["messages"][-1]))]})
    builder.add_edge(graph.START, "model")
    builder.add_edge("model", "guard")
    app = builder.compile()
    for question in ASKED:
        state = app.invoke({"messages": [HumanMessage(question)]})
        assert [message.type for message in state["messages"]] == ["human", "ai"]  # the same id: replaced, not added
        assert "poison" not in state["messages"][-1].text
    await asyncio.gather(*(app.ainvoke({"messages": [HumanMessage(question)]}) for question in ASKED))
    assert {detector.questions[f"{HARMFUL} {question}"] for question in ASKED} == set(ASKED)


# The recorder by itself -------------------------------------------------------------------


def told(recorder: QuestionRecorder, question: str, *, parent: Any = None, message_id: str | None = None) -> None:
    run_id = uuid.uuid4()
    recorder.on_chat_model_start({}, [[HumanMessage(question)]], run_id=run_id, parent_run_id=parent)
    message = AIMessage("x", id=message_id or f"lc_run--{run_id}")
    recorder.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run_id)


def test_memory_is_bounded() -> None:
    recorder = QuestionRecorder(limit=10)
    parent = uuid.uuid4()
    recorder.on_chain_start({}, {}, run_id=parent)
    for i in range(1000):
        recorder.on_chain_start({}, {}, run_id=uuid.uuid4(), parent_run_id=parent)  # never ends
        told(recorder, f"question {i}", parent=parent, message_id=f"m{i}")
    assert len(recorder._models) == len(recorder._by_message) == 10
    assert len(recorder._runs) == 80
    assert recorder.find("m999", None) == Question("question 999")
    assert recorder.find("m1", None) is None


def test_one_message_id_for_all_is_bounded_too() -> None:
    recorder = QuestionRecorder(limit=10)
    for i in range(100):
        told(recorder, f"question {i}", message_id="shared")
    assert len(recorder._by_message["shared"]) == 10
    assert recorder.find("shared", None) is None  # which one, nobody can tell


def test_ended_runs_are_forgotten() -> None:
    recorder = QuestionRecorder()
    parent = uuid.uuid4()
    recorder.on_chain_start({}, {}, run_id=parent)
    told(recorder, "Soup?", parent=parent)
    assert recorder.find(None, parent) == Question("Soup?")
    recorder.on_chain_end({}, run_id=parent)
    assert recorder.find(None, parent) is None
    assert not recorder._runs


def test_no_image_data_is_retained() -> None:
    recorder = install_recorder()
    payload = "QUJDREVG" * 4000
    EchoModel().invoke(
        [
            HumanMessage(
                content=[
                    {"type": "text", "text": "What is this?"},
                    {"type": "image", "base64": payload, "mime_type": "image/png"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{payload}"}},
                    {"type": "never_seen", "image_data": payload},
                ]
            )
        ]
    )
    question = next(reversed(recorder._models.values())).question
    assert question.text == "What is this?"
    assert [(image.data, image.url) for image in question.images] == [(None, None), (None, None)]
    assert payload not in repr(recorder._models)


def test_installed_once() -> None:
    from langchain_core.tracers.context import _configure_hooks

    recorder = install_recorder()
    before = len(_configure_hooks)
    HarmDetectorRunnable(PoisonDetector())
    DetoxifierRunnable("redact")
    assert install_recorder() is recorder
    assert len(_configure_hooks) == before
