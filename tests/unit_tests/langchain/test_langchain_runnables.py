"""What HarmDetectorRunnable and DetoxifierRunnable do with one response and with many."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_fakes import HARMFUL, REDACTED, SAFE, BrokenDetector, FixedDetoxifier, PoisonDetector, verdict_of

from protector_guardrails import (
    ConfigurationError,
    DetoxifierRunnable,
    HarmDetectorRunnable,
    HarmfulResponseError,
    InputError,
    Policy,
)

USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
IMAGE = {"type": "image", "base64": "QUJD", "mime_type": "image/png"}


def rich(text: str, cls: type[AIMessage] = AIMessage) -> AIMessage:
    call = {"name": "serve", "args": {"what": text}, "id": "c1"}
    calls: dict[str, Any] = {"tool_calls": [call]}
    if cls is AIMessageChunk:
        calls = {"tool_call_chunks": [{"name": "serve", "args": '{"what": "' + text + '"}', "id": "c1", "index": 0}]}
    return cls(
        content=[
            {"type": "reasoning", "reasoning": text},
            {"type": "text", "text": text, "annotations": [{"type": "citation", "title": text}]},
            IMAGE,
            {"type": "tool_use", "name": "serve", "input": {"what": text}, "id": "c1"},
            {"type": "never_seen", "value": text},
        ],
        id="m1",
        name="cook",
        usage_metadata=USAGE,
        response_metadata={
            "finish_reason": "stop",
            "model_name": "echo-1",
            "token_usage": {"total": 3, "details": {"cached": 0}},
            "logprobs": {"content": [{"token": word, "logprob": -1.0} for word in text.split()]},
            "output_text": text,
        },
        additional_kwargs={"reasoning_content": text, "tool_calls": [], "made_up": text},
        **calls,
    )


# Safe responses ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [AIMessage, AIMessageChunk])
def test_a_safe_message_leaves_as_it_came(cls: type[AIMessage]) -> None:
    message = rich(SAFE, cls)
    before = copy.deepcopy(message)
    for guard in (
        HarmDetectorRunnable(PoisonDetector()),
        DetoxifierRunnable("redact", detector=PoisonDetector()),
        HarmDetectorRunnable(PoisonDetector()) | DetoxifierRunnable("redact"),
    ):
        out = guard.invoke(message)
        assert message == before
        assert out is not message
        assert type(out) is cls
        assert out.content is message.content
        metadata = dict(out.response_metadata)
        record = metadata.pop("protector")
        assert out.model_copy(update={"response_metadata": metadata}) == before
        assert (record["harmful"], record["action"], record["score"]) == (False, "pass", 0.0)


@pytest.mark.parametrize(
    "message",
    [HumanMessage(SAFE), ToolMessage(SAFE, tool_call_id="t1", artifact={"a": 1}), ChatMessage(SAFE, role="x")],
)
def test_any_message_type_passes(message: Any) -> None:
    out = HarmDetectorRunnable(PoisonDetector()).invoke(message)
    assert (type(out), out.content) == (type(message), SAFE)


def test_text_in_text_out() -> None:
    assert HarmDetectorRunnable(PoisonDetector()).invoke(SAFE) == SAFE
    assert DetoxifierRunnable("redact", detector=PoisonDetector()).invoke(HARMFUL) == REDACTED


def test_dict_in_dict_out() -> None:
    detector = PoisonDetector()
    given = {"question": "Soup?", "response": AIMessage(SAFE, id="m1"), "other": 1}
    out = HarmDetectorRunnable(detector).invoke(given)
    assert out["response"].content == SAFE
    assert (out["other"], out["question"], out["protector"]["action"]) == (1, "Soup?", "pass")
    assert out["response"].response_metadata["protector"] == out["protector"]
    assert set(given) == {"question", "response", "other"}
    assert detector.questions == {SAFE: "Soup?"}


def test_dict_with_messages_and_images() -> None:
    detector = PoisonDetector()
    HarmDetectorRunnable(detector).invoke(
        {
            "messages": [HumanMessage(["What is it?", {"type": "image", "url": "u", "alt": "a mushroom"}])],
            "images": ["https://h/2.png"],
            "response": SAFE,
        }
    )
    [[exchange]] = detector.batches
    assert exchange.judged_question == "What is it?\n[image: a mushroom]"
    assert [image.url for image in exchange.images] == ["u", "https://h/2.png"]


# Harmful responses ------------------------------------------------------------------------


def test_the_default_marks_and_leaves_the_text() -> None:
    for policy in (None, Policy(on_harm="flag"), {"on_harm": "detoxify"}):
        out = HarmDetectorRunnable(PoisonDetector(), policy=policy).invoke(AIMessage(HARMFUL))
        assert out.content == HARMFUL
        assert (verdict_of(out)["harmful"], verdict_of(out)["action"]) == (True, "flag")


def test_refuse_replaces_and_detoxifier_leaves_the_refusal_alone() -> None:
    detector = PoisonDetector()
    guard = HarmDetectorRunnable(detector, policy=Policy(on_harm="refuse", refusal="No, and poison is why."))
    out = guard.invoke(rich(HARMFUL))
    assert out.text == "No, and poison is why."
    assert verdict_of(out)["action"] == "refuse"
    assert DetoxifierRunnable("redact").invoke(out) is out
    assert len(detector.batches) == 1


def test_raise() -> None:
    guard = HarmDetectorRunnable(PoisonDetector(), policy=Policy(on_harm="raise"))
    with pytest.raises(HarmfulResponseError) as caught:
        guard.invoke(AIMessage(HARMFUL))
    assert caught.value.outcome.exchange.response == HARMFUL
    assert "poison it" not in str(caught.value)
    assert guard.invoke(AIMessage(SAFE)).content == SAFE


def test_a_failing_detector_refuses_unless_the_policy_is_open() -> None:
    closed = HarmDetectorRunnable(BrokenDetector()).invoke(AIMessage(SAFE))
    assert closed.content != SAFE
    assert (verdict_of(closed)["action"], verdict_of(closed)["harmful"]) == ("refuse", None)
    assert verdict_of(closed)["error"] == "DetectorError: RuntimeError was raised"
    assert DetoxifierRunnable("redact").invoke(closed) is closed
    opened = HarmDetectorRunnable(BrokenDetector(), policy=Policy(on_error="open")).invoke(AIMessage(SAFE))
    assert (opened.content, verdict_of(opened)["action"]) == (SAFE, "pass")


def test_the_detoxifier_never_passes_what_nobody_could_judge() -> None:
    opened = HarmDetectorRunnable(BrokenDetector(), policy=Policy(on_error="open")).invoke(AIMessage(SAFE))
    out = DetoxifierRunnable("redact", detector=BrokenDetector(), policy=Policy()).invoke(opened)
    assert verdict_of(out)["action"] == "refuse"


@pytest.mark.parametrize("cls", [AIMessage, AIMessageChunk])
def test_a_rewrite_carries_nothing_of_the_response(cls: type[AIMessage]) -> None:
    chain = HarmDetectorRunnable(PoisonDetector()) | DetoxifierRunnable(FixedDetoxifier("Just salt."))
    out = chain.invoke(rich(HARMFUL, cls))
    assert type(out) is cls
    assert out.content == [{"type": "text", "text": "Just salt."}, IMAGE]
    assert (out.tool_calls, out.invalid_tool_calls, out.additional_kwargs) == ([], [], {})
    assert (out.id, out.name, out.usage_metadata) == ("m1", "cook", USAGE)
    record = out.response_metadata.pop("protector")
    assert out.response_metadata == {
        "finish_reason": "stop",
        "model_name": "echo-1",
        "token_usage": {"total": 3, "details": {"cached": 0}},
    }
    assert (record["harmful"], record["action"], record["recheck"]["harmful"]) == (True, "rewrite", False)
    assert "poison" not in repr(out).replace("poison@1", "")
    if cls is AIMessageChunk:
        assert (AIMessageChunk(content="") + out).tool_calls == []


def test_with_a_refusal_generated_images_are_gone() -> None:
    out = DetoxifierRunnable("refuse", detector=PoisonDetector(), policy={"refusal": "No."}).invoke(rich(HARMFUL))
    assert out.content == [{"type": "text", "text": "No."}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(HARMFUL, REDACTED), ([HARMFUL], [REDACTED]), ([{"text": HARMFUL}], [{"type": "text", "text": REDACTED}])],
)
def test_the_kind_of_content_stays(content: Any, expected: Any) -> None:
    out = DetoxifierRunnable("redact", detector=PoisonDetector()).invoke(AIMessage(content=content))
    assert out.content == expected


@pytest.mark.parametrize(
    "message",
    [ToolMessage(HARMFUL, tool_call_id="t1", artifact=HARMFUL), HumanMessage(HARMFUL), ChatMessage(HARMFUL, role="x")],
)
def test_other_message_types_are_rewritten_too(message: Any) -> None:
    out = DetoxifierRunnable("redact", detector=PoisonDetector()).invoke(message)
    assert (type(out), out.content) == (type(message), REDACTED)
    assert getattr(out, "tool_call_id", "t1") == "t1"
    assert getattr(out, "artifact", None) is None


@pytest.mark.parametrize(
    "message",
    [
        AIMessage(SAFE, additional_kwargs={"reasoning_content": "I could add poison"}),
        AIMessage(SAFE, tool_calls=[{"name": "buy", "args": {"item": ["poison"]}, "id": "c"}]),
        AIMessage([{"type": "text", "text": SAFE}, {"type": "never_seen", "x": ["poison"]}]),
        AIMessage([{"type": "text", "text": SAFE, "annotations": [{"cited_text": "poison"}]}]),
    ],
    ids=["reasoning", "tool call", "unknown block", "citation"],
)
def test_harm_anywhere_in_a_message_is_found_and_removed(message: AIMessage) -> None:
    out = DetoxifierRunnable("redact", detector=PoisonDetector()).invoke(message)
    assert verdict_of(out)["harmful"]
    assert "poison" not in repr(out).replace("poison@1", "")


def test_a_rewrite_still_harmful_or_empty_ends_in_the_refusal() -> None:
    for text in ("more poison", "", "  "):
        out = DetoxifierRunnable(FixedDetoxifier(text), detector=PoisonDetector()).invoke(AIMessage(HARMFUL))
        assert verdict_of(out)["action"] == "refuse"
        assert "poison" not in out.text


# Input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "a NoneType"),
        (3, "a int"),
        ([AIMessage("x")], "a list"),
        ({"question": "x"}, "no 'response'"),
        ({"response": 3}, "'response' is a int"),
        ({"response": [AIMessage("x")]}, "'response' is a list"),
        ({"response": "x", "question": 3}, "the question is a int"),
        ({"response": "x", "images": 3}, "images is a int"),
    ],
    ids=str,
)
def test_wrong_input_says_what_to_pass(given: Any, told: str) -> None:
    for guard in (HarmDetectorRunnable(PoisonDetector()), DetoxifierRunnable("redact", detector=PoisonDetector())):
        with pytest.raises(InputError, match=told) as caught:
            guard.invoke(given)
        assert "pass" in str(caught.value)


def test_an_input_error_does_not_quote_the_input() -> None:
    with pytest.raises(InputError) as caught:
        HarmDetectorRunnable(PoisonDetector()).invoke({"response": "x", "question": [("secret words", 1, 2)]})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["no such thing", 3, None])
def test_wrong_names_fail_when_made(name: Any) -> None:
    with pytest.raises(ConfigurationError):
        HarmDetectorRunnable(name)
    with pytest.raises(ConfigurationError):
        DetoxifierRunnable(name)


# Batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "abatch"])
async def test_a_batch_is_one_call_and_a_bad_item_fails_alone(mode: str) -> None:
    detector = PoisonDetector()
    guard = HarmDetectorRunnable(detector, policy=Policy(on_harm="raise"))
    inputs = [AIMessage(SAFE), None, HARMFUL, {"question": "q", "response": "fine"}]

    async def run(**kwargs: Any) -> list[Any]:
        return await guard.abatch(inputs, **kwargs) if mode == "abatch" else guard.batch(inputs, **kwargs)

    first, second, third, fourth = await run(return_exceptions=True)
    assert first.content == SAFE
    assert isinstance(second, InputError)
    assert isinstance(third, HarmfulResponseError)
    assert fourth["response"] == "fine"
    assert [len(batch) for batch in detector.batches] == [3]
    with pytest.raises(InputError):
        await run()
    assert [len(batch) for batch in detector.batches] == [3, 3]


@pytest.mark.parametrize("mode", ["batch", "abatch"])
async def test_a_batch_of_rewrites_is_one_call_too(mode: str) -> None:
    detector, detoxifier = PoisonDetector(), FixedDetoxifier("Just salt.")
    chain = HarmDetectorRunnable(detector) | DetoxifierRunnable(detoxifier)
    inputs = [AIMessage(HARMFUL if i % 2 else SAFE, id=str(i)) for i in range(6)]
    out = await chain.abatch(inputs) if mode == "abatch" else chain.batch(inputs)
    assert [message.content for message in out] == [SAFE, "Just salt."] * 3
    assert [message.id for message in out] == [str(i) for i in range(6)]
    assert [len(batch) for batch in detector.batches] == [6, 3]
    assert HarmDetectorRunnable(detector).batch([]) == []


async def test_every_mode_says_the_same() -> None:
    chain = HarmDetectorRunnable(PoisonDetector()) | DetoxifierRunnable("redact")

    def key(message: AIMessage) -> Any:
        record = {name: value for name, value in verdict_of(message).items() if name not in ("guard", "seal")}
        return message.content, record

    for text in (SAFE, HARMFUL):
        given = AIMessage(text)
        outs = [
            chain.invoke(given),
            await chain.ainvoke(given),
            *chain.batch([given]),
            *await chain.abatch([given]),
            *chain.stream(given),
            *[chunk async for chunk in chain.astream(given)],
        ]
        assert len(outs) == 6
        assert all(key(out) == key(outs[0]) for out in outs)


# As Runnables -----------------------------------------------------------------------------


def test_configurable_fields_reach_the_step_after() -> None:
    strict, lax = PoisonDetector("salt", name="salt@1"), PoisonDetector()
    detect = HarmDetectorRunnable(lax).configurable_fields(
        detector=ConfigurableField(id="detector"), policy=ConfigurableField(id="policy")
    )
    rewrite = DetoxifierRunnable("redact").configurable_fields(detoxifier=ConfigurableField(id="detoxifier"))
    chain = detect | rewrite
    assert verdict_of(chain.invoke(AIMessage(SAFE)))["action"] == "pass"
    configured = chain.with_config(configurable={"detector": strict, "detoxifier": FixedDetoxifier("Only herbs.")})
    for _ in range(3):
        out = configured.invoke(AIMessage(SAFE))
        assert out.content == "Only herbs."
        assert verdict_of(out)["recheck"]["detector"] == "salt@1"
    refusing = chain.with_config(configurable={"policy": {"on_harm": "refuse", "refusal": "No."}})
    assert refusing.invoke(AIMessage(HARMFUL)).content == "No."


def test_retry_and_fallbacks() -> None:
    guard = HarmDetectorRunnable(PoisonDetector(), policy=Policy(on_harm="raise"))
    assert guard.with_retry(stop_after_attempt=2).invoke(AIMessage(SAFE)).content == SAFE
    with pytest.raises(HarmfulResponseError):
        guard.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke(AIMessage(HARMFUL))
    backed = guard.with_fallbacks(
        [DetoxifierRunnable("redact", detector=PoisonDetector())], exceptions_to_handle=(HarmfulResponseError,)
    )
    assert backed.invoke(AIMessage(HARMFUL)).content == REDACTED


@pytest.mark.filterwarnings("ignore::pydantic.json_schema.PydanticJsonSchemaWarning")
def test_schemas_graph_and_copies() -> None:
    guard = HarmDetectorRunnable(PoisonDetector())
    chain = guard | DetoxifierRunnable("redact")
    assert "HarmDetectorRunnable" in chain.get_graph().draw_mermaid()
    assert chain.get_input_jsonschema() and chain.get_output_jsonschema()
    configurable = guard.configurable_fields(detector=ConfigurableField(id="detector"))
    assert "detector" in str(configurable.get_config_jsonschema())
    assert copy.deepcopy(HarmDetectorRunnable(policy=Policy(threshold=0.2))).policy == Policy(threshold=0.2)
    assert pickle.loads(pickle.dumps(DetoxifierRunnable("refuse"))).detoxifier == "refuse"
    pickled = pickle.loads(pickle.dumps(HarmDetectorRunnable(policy={"threshold": 0.3})))
    assert pickled.policy.threshold == 0.3
