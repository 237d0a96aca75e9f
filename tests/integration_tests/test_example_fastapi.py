"""The chat server of the examples, over real connections: what is on the wire, who is stopped, what is logged."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from load_fakes import POISON, Taster, Writer, answer_to, cut_up, mark, question
from PIL import Image
from pydantic import Field

from protector_guardrails import Exchange, HarmDetector, Verdict, WeightsError
from protector_guardrails.audit import read_audit
from protector_guardrails.detectors.embedded import EmbeddedDetector

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

from fastapi_server import demo_model, wire  # noqa: E402
from fastapi_server.app import Settings, create_app  # noqa: E402
from fastapi_server.door import JsonLines  # noqa: E402

spec = importlib.util.spec_from_file_location("leak_marker", ROOT / "tests" / "leaks" / "marker.py")
assert spec and spec.loader
marker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(marker)

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SAFE = "Take the pot from the shelf and fill it to the brim. Put it on the stove and wait until it steams. " * 8
HARMFUL = f"{SAFE}Then add {marker.MARKER} to it while nobody looks. Stir it slowly and serve it hot."


class Marked(HarmDetector):
    """The whole marker is harmful."""

    name = "marked@1"

    def __init__(self) -> None:
        self.seen: list[Exchange] = []

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.seen.extend(exchanges)
        scores = [float(any(marker.MARKER in text for text in exchange.passages)) for exchange in exchanges]
        return [Verdict(harmful=score > 0.5, score=score, detector=self.name) for score in scores]

    @property
    def noticed(self) -> bool:
        return any(marker.MARKER in text for exchange in self.seen for text in exchange.passages)


class Broken(Marked):
    """Fails, and quotes what it was to judge."""

    def detect(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        raise RuntimeError(f"cannot judge {exchanges!r}")


class Says(BaseChatModel):
    """Says a text in pieces, and may fail in the end, quoting it."""

    text: str = HARMFUL
    size: int = 8
    fails: bool = False
    asked: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "says"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.asked.append(messages)
        if self.fails:
            raise ConnectionError(f"lost after {self.text}")
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.text))])

    async def _astream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        self.asked.append(messages)
        for piece in cut_up(self.text, self.size):
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        if self.fails:
            raise ConnectionError(f"lost after {self.text}")


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The application behind a real uvicorn, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert soon(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def serving(model: Any, detector: Any, **settings: Any) -> Iterator[str]:
    with served(create_app(Settings(**settings), model=model, detector=detector)) as url:
        yield url


def soon(true: Callable[[], bool], within_s: float = 10) -> bool:
    begun = time.monotonic()
    while not true() and time.monotonic() - begun < within_s:
        time.sleep(0.01)
    return true()


def asking(text: Any, *, stream: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "stream": stream}


def ask(url: str, text: Any, *, stream: bool) -> httpx.Response:
    body = json.dumps(asking(text, stream=stream))  # in ASCII, as httpx itself would not write it
    return httpx.post(f"{url}/chat", content=body, headers={"Content-Type": "application/json"}, timeout=60)


def on_the_wire(url: str, text: str, *, stream: bool) -> bytes:
    """Every byte that comes back, head and framing included."""
    with begun(url, text, stream=stream) as connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def begun(url: str, text: str, *, stream: bool) -> closing[socket.socket]:
    """A connection on which a chat was asked for."""
    body = json.dumps(asking(text, stream=stream)).encode()
    connection = socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=60)
    head = "POST /chat HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return closing(connection)


def chunks_of(body: str) -> list[dict[str, Any]]:
    """The events of a stream, which ends as OpenAI's does."""
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def text_and_end(response: httpx.Response) -> tuple[str, dict[str, Any]]:
    """What an answer says, and how it ended, in either form."""
    assert response.status_code == 200
    if response.headers["content-type"] == "application/json":
        [choice] = response.json()["choices"]
        return choice["message"]["content"], choice
    chunks = chunks_of(response.text)
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks), chunks[-1]["choices"][0]


either_form = pytest.mark.parametrize("stream", [False, True], ids=["json", "events"])


# What is on the wire -----------------------------------------------------------------------


def test_the_eye_sees_the_marker_as_the_server_would_send_it() -> None:
    harmful, safe = (wire.event(wire.delta(uuid4(), text)) for text in (HARMFUL, SAFE))
    assert (marker.letters_in([harmful]), marker.letters_in([safe])) == (marker.MARKER, "")


@either_form
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_no_letter_of_harm_is_on_the_wire_in_the_log_or_on_the_disk(
    stream: bool, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector, audit = Marked(), tmp_path / "audit.jsonl"
    with caplog.at_level(logging.DEBUG), serving(Says(size=size), detector, audit_log=audit) as url:
        raw = on_the_wire(url, "How do I warm it up?", stream=stream)
    assert raw.startswith(b"HTTP/1.1 200 OK")
    assert detector.noticed
    assert b"Take the pot" in raw and b'"content_filter"' in raw, "the safe part is there"
    lines = [JsonLines().format(record) for record in caplog.records]
    assert marker.letters_in([raw.decode(), repr(raw), *lines, caplog.text, audit.read_text()]) == ""
    assert "Take the pot" not in "".join(lines) and "How do I warm" not in "".join(lines)


@either_form
def test_harm_that_begins_the_answer_never_starts_a_stream(stream: bool) -> None:
    with serving(Says(text=f"Add {marker.MARKER} to it."), Marked()) as url:
        raw = on_the_wire(url, "How?", stream=stream)
    assert marker.letters_in([raw.decode()]) == "" and b"I can't share" in raw


@either_form
@pytest.mark.parametrize("text", [HARMFUL, SAFE])
def test_a_model_that_fails_is_not_quoted(stream: bool, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(Says(text=text, fails=True), Marked()) as url:
        raw = on_the_wire(url, "How?", stream=stream)
    assert b'"model_error"' in raw and b"lost after" not in raw
    assert raw.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 502")
    assert raw.endswith(b"[DONE]\n\n\r\n0\r\n\r\n") is stream
    assert marker.letters_in([raw.decode(), caplog.text]) == "" and "lost after" not in caplog.text


@either_form
def test_a_detector_that_fails_yields_the_refusal(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Says(), Broken()) as url:
        raw = on_the_wire(url, "How?", stream=stream)
        ready, health = httpx.get(f"{url}/ready"), httpx.get(f"{url}/health")
    assert b"I can't share" in raw and b"Take the pot" not in raw
    assert (ready.status_code, health.status_code) == (503, 200)
    assert ready.json() == {"ready": False, "detector": None, "problem": "DetectorError: RuntimeError was raised"}
    assert marker.letters_in([raw.decode(), ready.text, caplog.text]) == ""


def test_a_detector_that_cannot_be_loaded_lets_nothing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> EmbeddedDetector:
        raise WeightsError("model.onnx is not the file that the manifest names")

    monkeypatch.setattr(EmbeddedDetector, "shared", staticmethod(missing))
    with serving(Says(), "embedded") as url:
        ready = httpx.get(f"{url}/ready")
        whole, events = (on_the_wire(url, "How?", stream=stream) for stream in (False, True))
        monkeypatch.undo()
        assert httpx.get(f"{url}/ready").status_code == 200, "it is tried again"
    assert (ready.status_code, ready.json()["problem"]) == (503, "WeightsError")
    assert whole.startswith(b"HTTP/1.1 503") and b"guard_error" in whole and b"guard_error" in events
    assert b"Take the pot" not in whole + events


@either_form
def test_half_a_surrogate_pair_can_be_sent(stream: bool) -> None:
    with serving(Says(text="A smile: \ud83d is half of one."), Marked()) as url:
        assert text_and_end(ask(url, "What?", stream=stream))[0] == "A smile: \ud83d is half of one."


# Many at once ------------------------------------------------------------------------------


def test_twenty_at_once_get_their_own_answers(tmp_path: Path) -> None:
    model, audit = Writer(pause=0.005), tmp_path / "audit.jsonl"
    with serving(model, Taster(delay=0.002), audit_log=audit) as url, ThreadPoolExecutor(20) as pool:

        def chat(number: int) -> httpx.Response:
            return ask(url, question(number, harmful=number % 4 == 0), stream=number % 2 == 0)

        responses = list(pool.map(chat, range(20)))
    for number, response in enumerate(responses):
        text, end = text_and_end(response)
        if number % 4 == 0:
            assert POISON not in text and end["finish_reason"] == "content_filter"
        else:
            assert text == answer_to(question(number)) and end["finish_reason"] == "stop"
        assert f"answer {mark(number)}" in text or number % 4 == 0
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 20 and all(i in r.text for i, r in zip(ids, responses, strict=True))
    assert {record.run_id for record in read_audit(audit)} == set(ids), "the audit log has them under the same ids"
    assert model.desk.busy == 0 and model.desk.busiest > 5


def test_too_many_are_told_to_come_back() -> None:
    model = Writer(stalls_at=1)
    with serving(model, Taster(), max_concurrent=1) as url:
        with begun(url, question(1), stream=True):
            assert soon(lambda: model.desk.busy == 1)
            refused = ask(url, question(2), stream=False)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["type"] == "overloaded" and refused.headers["x-request-id"]
            assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/ready").status_code == 200
        assert soon(lambda: model.desk.busy == 0)
        model.desk.stalls_at = None
        assert soon(lambda: ask(url, question(3), stream=True).status_code == 200), "the place is free again"


# Clients that leave, models that hang -----------------------------------------------------


@pytest.mark.parametrize("closing_s", [0.0, 0.2])
@pytest.mark.parametrize("state", ["writing", "stalled"])
def test_a_client_that_leaves_a_stream_stops_the_model(
    state: str, closing_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    asked = question(1, long=True)
    model = Writer(pause=0.01, stalls_at=60 if state == "stalled" else None, closing=closing_s)
    with caplog.at_level(logging.INFO), serving(model, Taster()) as url:
        with begun(url, asked, stream=True) as connection:
            assert b"Sentence 0" in b"".join(connection.recv(4096) for _ in range(3))
            assert soon(lambda: state == "writing" or model.desk.writings[asked].produced == 60)
        assert soon(lambda: model.desk.busy == 0), "the writer was stopped"
    assert model.desk.writings[asked].produced < len(cut_up(answer_to(asked)))
    [facts] = [record.facts for record in caplog.records if hasattr(record, "facts") and "route" in record.facts]
    assert (facts["status"], facts["stream"], facts["complete"]) == (200, True, False)


def test_a_client_that_leaves_before_a_whole_answer_stops_the_model(caplog: pytest.LogCaptureFixture) -> None:
    model = Writer(pause=30)
    with caplog.at_level(logging.INFO), serving(model, Taster()) as url:
        with begun(url, question(1), stream=False):
            assert soon(lambda: model.desk.busy == 1)
        assert soon(lambda: model.desk.busy == 0)
        assert soon(lambda: any(getattr(r, "facts", {}).get("status") == 499 for r in caplog.records))


@either_form
def test_a_model_that_hangs_is_stopped(stream: bool) -> None:
    model = Writer(stalls_at=3) if stream else Writer(pause=30)
    with serving(model, Taster(), timeout_s=0.3) as url:
        response = ask(url, question(1), stream=stream)
        assert soon(lambda: model.desk.busy == 0)
    assert response.status_code == (200 if stream else 504)
    error = chunks_of(response.text)[-1] if stream else response.json()
    assert error["error"]["type"] == "timeout"


# What comes in -----------------------------------------------------------------------------


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_picture_reaches_the_model_and_its_description_the_detector() -> None:
    model, detector = Says(text=SAFE), Marked()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture()}"}}
    with serving(model, detector) as url:
        parts = [{"type": "text", "text": "What is it?"}, {**image, "description": "a green square"}]
        assert text_and_end(ask(url, parts, stream=False))[0] == SAFE
    [messages] = model.asked
    assert messages[-1].content == [parts[0], image]
    [judged] = [exchange for exchange in detector.seen if exchange.response == SAFE]
    assert judged.judged_question == "What is it?\n[image: a green square]"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": "https://secret.example/a.png"}}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,secret!"}}],
        [{"type": "image_url", "image_url": {"url": "data:text/html;base64,c2VjcmV0"}}],
        [{"type": "text", "text": "secret " * 20_000}],
        {"text": "secret"},
        "\ud800 secret",
    ],
)
def test_what_is_not_valid_is_refused_and_not_sent_back(content: Any) -> None:
    model = Says()
    with serving(model, Marked()) as url:
        response = ask(url, content, stream=True)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")
    assert "secret" not in response.text and "c2VjcmV0" not in response.text
    assert response.json()["error"]["details"] and model.asked == []


# The demo, and the process -------------------------------------------------------------------


@either_form
def test_the_demo_answers_and_nothing_of_its_harmful_answer_arrives(stream: bool) -> None:
    with serving(demo_model.DemoModel(pause_s=0), "embedded") as url:
        hours, ticket = (ask(url, text, stream=stream) for text in ("When?", "What does the ticket say?"))
        ready = httpx.get(f"{url}/ready")
    assert text_and_end(hours)[0] == demo_model.HOURS
    text, end = text_and_end(ticket)
    # Where a stream is cut decides whether something harmless is left to say.
    assert end["action"] in {"refuse", "rewrite"} if stream else end["action"] == "refuse"
    if end["action"] == "refuse":
        assert "I can't share" in text and end["finish_reason"] == "content_filter"
    assert not any(word in text for word in ("fake", "logo", "tourists", "false name", "cheated"))
    assert ready.status_code == 200 and ready.json()["detector"].startswith("embedded@")
    assert "score" not in ticket.text


def test_it_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    """Settings from the environment, a model by its import path, a log of JSON lines, and an end when it is told to."""
    audit = tmp_path / "audit.jsonl"
    (tmp_path / "my_models.py").write_text(
        "from langchain_core.language_models import FakeListChatModel\n"
        "def vision():\n    return FakeListChatModel(responses=['The lamp is on the shelf.'])\n"
    )
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "CHAT_MODEL": "my_models:vision",
        "CHAT_AUDIT_LOG": str(audit),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "fastapi_server", "--port", str(port)],
        cwd=EXAMPLES,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            try:
                return httpx.get(f"{url}/ready").status_code == 200
            except httpx.TransportError:
                return False

        assert soon(is_ready, within_s=60)
        response = ask(url, "Where is the lamp?", stream=True)
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    assert text_and_end(response)[0] == "The lamp is on the shelf."
    lines = [json.loads(line) for line in said.splitlines()]
    [line] = [line for line in lines if line.get("route") == "/chat"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["status"], line["action"], line["stream"], line["complete"]) == (200, "pass", True, True)
    [record] = read_audit(audit)
    assert record.run_id == line["request_id"]
    assert "lamp" not in said + audit.read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_detector_that_was_loaded_before_a_fork_is_not_ready() -> None:
    """As of a server that loads the application first and then forks: its workers lack the detector's threads."""
    code = (
        "import asyncio, os\n"
        "from fastapi_server.app import _judge_once\n"
        "for text in ('parent', 'child'):\n"
        "    print(text, asyncio.run(_judge_once('embedded', 5.0)), flush=True)\n"
        "    if text == 'parent' and os.fork():\n"
        "        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(ROOT)])}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=60).splitlines()
    assert said[0].startswith("parent {'detector': 'embedded@") and said[0].endswith("'problem': None}")
    assert said[1].startswith("child {'detector': None") and "DetectorError" in said[1]


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(Exception, match="my_module_that_is_not_there"):
        create_app(Settings(model="my_module_that_is_not_there:model"))
