"""``mllm | detector | detoxifier`` under stream, astream and transform with judged windows."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_fakes import FixedDetoxifier, PoisonDetector
from scripted_model import ScriptedModel

from protector_guardrails import DetoxifierRunnable, HarmDetectorRunnable, HarmfulResponseError, Policy

WINDOW = {"streaming": "window", "window_chars": 80, "overlap_chars": 20}
WORDS = [f"word{i} " for i in range(80)]
SAFE = [*WORDS, AIMessageChunk("end.", chunk_position="last", response_metadata={"finish_reason": "stop"})]
HARMFUL = [*WORDS[:40], "some poison ", *WORDS[40:]]


def chain(answer, *steps):
    model = ScriptedModel(answers=[answer])
    whole = model
    for step in steps:
        whole = whole | step
    return whole, model


async def streamed(runnable, given="q", how="stream"):
    if how == "stream":
        return list(runnable.stream(given))
    if how == "transform":
        return list(runnable.transform(iter([given])))
    return [chunk async for chunk in runnable.astream(given)]


def gather(chunks):
    first, *others = chunks
    return first + others if others else first


every_way = pytest.mark.parametrize("how", ["stream", "astream", "transform"])


@every_way
async def test_safe_text_leaves_in_pieces_and_adds_up_to_what_came(how):
    detector = PoisonDetector()
    pipe, _ = chain(SAFE, HarmDetectorRunnable(detector, policy=WINDOW), DetoxifierRunnable("redact"))
    chunks = await streamed(pipe, how=how)
    assert len(chunks) > 20
    whole = gather(chunks)
    assert whole.text == "".join(WORDS) + "end."
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.chunk_position == "last"
    assert whole.response_metadata["protector"]["action"] == "pass"
    carrying = [chunk for chunk in chunks if "protector" in chunk.response_metadata]
    assert len(carrying) == 1, "merging would join the strings of two verdicts, and refuse their floats"
    judged = sum(len(exchange.response) for batch in detector.batches for exchange in batch)
    assert judged < 3 * len(whole.text), "the detoxifier takes over what the detector judged"
    assert {exchange.question for batch in detector.batches for exchange in batch} == {"q"}


@every_way
async def test_harm_stops_the_model_and_the_rewrite_follows(how):
    detector = PoisonDetector()
    soup = FixedDetoxifier("Let us have soup.")
    pipe, model = chain(HARMFUL, HarmDetectorRunnable(detector, policy=WINDOW), DetoxifierRunnable(soup))
    chunks = await streamed(pipe, how=how)
    whole = gather(chunks)
    assert "poison" not in whole.text
    assert whole.text.endswith("\n\nLet us have soup.")
    assert "".join(WORDS).startswith(whole.text.removesuffix("\n\nLet us have soup."))
    record = whole.response_metadata["protector"]
    assert record["action"] == "rewrite"
    assert whole.text[record["cut"] :] == "\n\nLet us have soup."
    assert model.seen[0]["chunks"] < 60
    assert model.seen[0]["closed"]
    assert len(soup.asked) == 1
    assert soup.asked[0].response.startswith("word0 word1 ")


@every_way
async def test_a_rewrite_that_begins_alike_goes_on(how):
    soup = FixedDetoxifier("".join(WORDS[:40]) + "some soup.")
    pipe, _ = chain(HARMFUL, HarmDetectorRunnable(PoisonDetector(), policy=WINDOW), DetoxifierRunnable(soup))
    assert gather(await streamed(pipe, how=how)).text == "".join(WORDS[:40]) + "some soup."


@every_way
async def test_texts_stream_as_well(how):
    pipe, model = chain(
        HARMFUL,
        StrOutputParser(),
        HarmDetectorRunnable(PoisonDetector(), policy=WINDOW),
        DetoxifierRunnable(FixedDetoxifier("Soup.")),
    )
    chunks = await streamed(pipe, how=how)
    assert len(chunks) > 5
    assert "".join(chunks).endswith("\n\nSoup.")
    assert "poison" not in "".join(chunks)
    if how == "astream":  # a step of LangChain's own that is closed in a sync stream reads its input to the end
        assert model.seen[0]["chunks"] < 60


@every_way
async def test_a_step_in_between_that_changes_the_text_has_it_judged_again(how):
    def add(chunks):
        for chunk in chunks:
            yield AIMessageChunk(chunk.content.replace("word7 ", "poison "))

    async def aadd(chunks):
        async for chunk in chunks:
            yield AIMessageChunk(chunk.content.replace("word7 ", "poison "))

    from langchain_core.runnables import RunnableGenerator

    pipe, _ = chain(
        SAFE,
        HarmDetectorRunnable(PoisonDetector(), policy=WINDOW),
        RunnableGenerator(add, aadd),
        DetoxifierRunnable(FixedDetoxifier("Soup."), policy=WINDOW),
    )
    whole = gather(await streamed(pipe, how=how))
    assert "poison" not in whole.text
    assert whole.text.endswith("Soup.")


@every_way
async def test_a_lambda_in_between_holds_everything_and_all_is_well(how):
    pipe, _ = chain(
        HARMFUL,
        HarmDetectorRunnable(PoisonDetector(), policy=WINDOW),
        RunnableLambda(lambda message: message),
        DetoxifierRunnable(FixedDetoxifier("Soup.")),
    )
    whole = gather(await streamed(pipe, how=how))
    assert "poison" not in whole.text
    assert whole.text.endswith("Soup.")


@every_way
async def test_a_detoxifier_alone_judges_its_windows(how):
    detector = PoisonDetector()
    pipe, model = chain(HARMFUL, DetoxifierRunnable("refuse", detector=detector, policy={**WINDOW, "refusal": "No."}))
    whole = gather(await streamed(pipe, how=how))
    assert whole.text.endswith("\n\nNo.")
    assert "poison" not in whole.text
    assert model.seen[0]["chunks"] < 60


@every_way
async def test_refuse_and_raise_and_flag(how):
    def pipe(on_harm):
        return chain(HARMFUL, HarmDetectorRunnable(PoisonDetector(), policy={**WINDOW, "on_harm": on_harm}))[0]

    assert gather(await streamed(pipe("refuse"), how=how)).text.endswith(Policy().refusal_for(None))
    with pytest.raises(HarmfulResponseError):
        await streamed(pipe("raise"), how=how)
    flagged = gather(await streamed(pipe("flag"), how=how))
    assert "poison" in flagged.text
    assert flagged.response_metadata["protector"]["action"] == "flag"


@every_way
async def test_a_detector_that_marks_for_a_detoxifier_lets_the_rest_through_marked(how):
    pipe, model = chain(HARMFUL, HarmDetectorRunnable(PoisonDetector(), policy=WINDOW))
    whole = gather(await streamed(pipe, how=how))
    assert whole.response_metadata["protector"]["harmful"] is True
    assert model.seen[0]["chunks"] < 60


async def test_a_reader_who_leaves_stops_the_model():
    steps = (HarmDetectorRunnable(PoisonDetector(), policy=WINDOW), DetoxifierRunnable("redact"))
    pipe, model = chain(SAFE * 20, *steps)
    stream = pipe.stream("q")
    next(stream)
    stream.close()
    assert model.seen[0]["chunks"] < 60
    assert model.seen[0]["closed"]
    pipe, model = chain(SAFE * 20, *steps)
    stream = pipe.astream("q")
    await anext(stream)
    await stream.aclose()
    assert model.seen[0]["chunks"] < 60


async def test_events_are_told_once():
    class Collector(BaseCallbackHandler):
        def __init__(self):
            self.names = []

        def on_custom_event(self, name, data, **kwargs):
            self.names.append(name)

    pipe, _ = chain(HARMFUL, HarmDetectorRunnable(PoisonDetector(), policy=WINDOW), DetoxifierRunnable("refuse"))
    for run in (lambda c: list(pipe.stream("q", c)), None):
        handler = Collector()
        if run:
            run({"callbacks": [handler]})
        else:
            _ = [chunk async for chunk in pipe.astream("q", {"callbacks": [handler]})]
        assert handler.names == ["protector.verdict", "protector.refused"]


async def test_invoke_and_stream_agree():
    for answer in (SAFE, HARMFUL):
        pipe, _ = chain(answer, HarmDetectorRunnable(PoisonDetector(), policy=WINDOW), DetoxifierRunnable("refuse"))
        invoked, whole = pipe.invoke("q"), gather(await streamed(pipe))
        actions = [m.response_metadata["protector"]["action"] for m in (invoked, whole)]
        assert actions[0] == actions[1]
