"""The replay model behaves as a chat model does, and knows nothing but its records."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage

from protector_guardrails.errors import ProtectorError
from protector_guardrails.langchain.replay import ReplayChatModel, UnknownQuestionError, question_message

RECORDS = [
    {"id": "0", "question": "Is it safe?", "image_desc": "a mushroom", "response": "No,  it is\nnot. ", "model": "one"},
    {"id": "1", "question": "Is it safe?", "image_desc": "an apple", "response": "It is.", "model": "one"},
    {"id": "2", "question": "Is it safe?", "image_desc": "an apple", "response": "Perhaps.", "model": "two"},
    {"id": "3", "question": "How are you?", "response": "", "model": "two"},
]


@pytest.fixture
def replay():
    return ReplayChatModel(records=RECORDS)


def test_question_message_carries_the_description_and_no_data():
    [text, image] = question_message(RECORDS[0]).content
    assert text == {"type": "text", "text": "Is it safe?"}
    assert image == {"type": "image", "file_id": "recorded-0", "description": "a mushroom"}
    assert question_message(RECORDS[3]).content == "How are you?"


def test_the_image_chooses_between_records(replay):
    assert replay.invoke([question_message(RECORDS[0])]).content == "No,  it is\nnot. "
    assert replay.invoke([question_message(RECORDS[1])]).content == "It is."
    assert replay.invoke("Is it safe?").content == "No,  it is\nnot. "  # the first that fits


def test_the_model_chooses_between_records():
    answer = ReplayChatModel(records=RECORDS, model="two").invoke([question_message(RECORDS[1])])
    assert answer.content == "Perhaps."
    assert answer.response_metadata["model_name"] == "two"


def test_the_last_human_message_asks(replay):
    messages = [
        SystemMessage("Be kind."),
        HumanMessage("How are you?"),
        AIMessage("Well."),
        question_message(RECORDS[1]),
    ]
    assert replay.invoke(messages).content == "It is."


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage("Never recorded secret")],
        [question_message({**RECORDS[0], "image_desc": "a plum"})],
        [SystemMessage("Is it safe?")],
    ],
)
def test_an_unknown_question_is_an_error_that_does_not_quote_it(replay, messages):
    with pytest.raises(UnknownQuestionError) as caught:
        replay.invoke(messages)
    assert "secret" not in str(caught.value) and "plum" not in str(caught.value)
    assert isinstance(caught.value, ProtectorError)


def test_an_unknown_model_is_an_error():
    with pytest.raises(UnknownQuestionError, match="of three"):
        ReplayChatModel(records=RECORDS, model="three").invoke("Is it safe?")


async def test_every_way_of_asking_gives_the_same_answer(replay):
    message = [question_message(RECORDS[0])]
    expected = RECORDS[0]["response"]
    assert (await replay.ainvoke(message)).content == expected
    assert [answer.content for answer in replay.batch([message, message])] == [expected] * 2
    assert [answer.content for answer in await asyncio.gather(*(replay.ainvoke(message) for _ in range(2)))] == [
        expected
    ] * 2
    chunks = list(replay.stream(message))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert len(chunks) > 3 and isinstance(whole, AIMessageChunk)
    assert whole.content == expected
    assert whole.chunk_position == "last"
    assert whole.response_metadata["model_name"] == "one"
    assert "".join([chunk.content async for chunk in replay.astream(message)]) == expected


def test_an_empty_answer_streams_too(replay):
    assert "".join(chunk.content for chunk in replay.stream("How are you?")) == ""


def test_records_stay_out_of_reprs_and_traces(replay):
    assert "mushroom" not in repr(replay) + str(replay._identifying_params)


def test_guarded_it_passes_a_safe_answer_with_its_verdict():
    from protector_guardrails import DetoxifierRunnable, HarmDetectorRunnable

    safe = {"question": "What is this?", "image_desc": "a kite", "response": "A kite over a beach.", "model": "one"}
    chain = ReplayChatModel(records=[safe]) | HarmDetectorRunnable() | DetoxifierRunnable("redact")
    answer = chain.invoke([question_message(safe)])
    assert answer.content == "A kite over a beach."
    assert answer.response_metadata["protector"]["action"] == "pass"
    assert answer.response_metadata["model_name"] == "one"
