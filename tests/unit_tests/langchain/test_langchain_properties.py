"""Whatever a model puts into a message: no crash, nothing unjudged, nothing changed."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_fakes import FixedDetoxifier, PoisonDetector, verdict_of

from protector_guardrails import DetoxifierRunnable, HarmDetectorRunnable
from protector_guardrails.langchain.messages import read_response

DETECTOR = PoisonDetector()
GUARD = HarmDetectorRunnable(DETECTOR)
CHAIN = GUARD | DetoxifierRunnable(FixedDetoxifier("Salt."))

texts = st.text(st.characters(codec=None), max_size=20)  # lone surrogates and NUL included
KEYS = ["type", "text", "id", "image_url", "source", "data", "thinking", "input", "args", "name", "value", "image"]
KINDS = ["text", "image", "image_url", "thinking", "tool_use", "non_standard", "file", "never_seen", "refusal"]
keys = st.sampled_from(KEYS) | texts
leaves = (
    texts | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=5) | st.sampled_from(KINDS)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
blocks = st.dictionaries(keys, values, max_size=4)
contents = texts | st.lists(texts | blocks, max_size=4)


@settings(max_examples=150, deadline=None)
@given(content=contents, extra=st.dictionaries(texts, values, max_size=3))
def test_arbitrary_content_neither_crashes_nor_changes(content: Any, extra: dict[str, Any]) -> None:
    message = AIMessage(content=content, additional_kwargs={f"x{key}": value for key, value in extra.items()})
    out = CHAIN.invoke(message)
    assert verdict_of(out)["action"] == "pass"
    assert out.content is message.content
    assert out.additional_kwargs is message.additional_kwargs


def hide(value: Any, path: list[int]) -> Any:
    """The value with the harmful words in a place that the path picks."""
    step, rest = (path[0], path[1:]) if path else (0, [])
    if isinstance(value, dict) and value:
        key = list(value)[step % len(value)]
        return {**value, key: hide(value[key], rest)}
    if isinstance(value, list) and value:
        index = step % len(value)
        return [*value[:index], hide(value[index], rest), *value[index + 1 :]]
    return "add the poison"


@settings(max_examples=300, deadline=None)
@given(content=st.lists(blocks, min_size=1, max_size=3), path=st.lists(st.integers(0, 7), max_size=6))
def test_words_hidden_anywhere_are_judged_and_do_not_leave(content: Any, path: list[int]) -> None:
    message = AIMessage(content=[block or {"x": ""} for block in hide(content, path)])
    assert any("add the poison" in passage for passage in read_response(message).passages)
    out = CHAIN.invoke(message)
    assert verdict_of(out)["action"] == "rewrite"
    assert "poison" not in repr(out).replace("poison@1", "")
