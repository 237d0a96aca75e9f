"""How the detector learns the question in ``mllm | detector``.

Only the model's answer travels through the pipe. The recorder is a callback handler that
LangChain puts into every run of the process; it keeps the question of each chat model
run and finds it again from the answer. It was chosen over context variables, parent
inputs and message subclasses because it alone is right in every mode, streams and
batches included.
"""

# ruff: noqa: ARG002 - the signatures are LangChain's

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.tracers.context import register_configure_hook

from protector_guardrails.langchain.messages import Question, question_of

# Runs that only hand on to what they wrap: what is looked for lies beside them.
_WRAPPERS = ("RunnableWithFallbacks", "RunnableParallel", "RunnableAssign", "RunnableBranch")
_MODELS_PER_RUN = 256

_paused: ContextVar[bool] = ContextVar("protector_recording_paused", default=False)


@dataclass(slots=True)
class _Run:
    parent: UUID | None
    name: str = ""
    models: deque[UUID] = field(default_factory=lambda: deque(maxlen=_MODELS_PER_RUN))


@dataclass(slots=True)
class _Model:
    question: Question
    message_ids: set[str] = field(default_factory=set)


class QuestionRecorder(BaseCallbackHandler):
    """Keeps the questions of the latest chat model runs.

    What is kept is the text of the last human turn and its images without their data, for
    at most ``limit`` model runs; the oldest goes first. Nothing leaves the process.

    It knows nothing of a model that is no LangChain model, such as a plain function. LangChain
    hands callbacks a copy of the messages in which an ``image`` block has lost its description:
    to have descriptions judged, put them into the message's
    ``additional_kwargs["image_descriptions"]``, or pass the question explicitly.

    Args:
        limit: How many model runs are remembered; open runs, which are small, eight times as many.
    """

    run_inline = True  # in the async modes, too, before the model answers and in order

    def __init__(self, *, limit: int = 1024) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._runs: OrderedDict[UUID, _Run] = OrderedDict()
        self._models: OrderedDict[UUID, _Model] = OrderedDict()
        self._by_message: dict[str, list[UUID]] = {}

    # What is looked up ---------------------------------------------------------------

    def find(self, message_id: str | None, parent_run_id: UUID | None, *, asker: str = "") -> Question | None:
        """The question behind an answer, or None where it cannot be told for sure.

        An id that names one run decides. The id alone would be wrong where several runs
        return one message object, as a fake or a cache does; then it is the run with that
        id below the nearest common ancestor. Without a known id it is the latest model run
        beside the detector.

        Args:
            message_id: Id of the answer.
            parent_run_id: The run that the detector's own run is in.
            asker: Name of the detector's own run.
        """
        with self._lock:
            named = self._by_message.get(message_id, []) if message_id else []
            if len(named) == 1:
                return self._models[named[0]].question
            if named:
                wanted = set(named)
                for run in self._ancestors(parent_run_id):
                    for model_id in reversed(run.models):
                        if model_id in wanted:
                            return self._models[model_id].question
                return None
            scope = self._runs.get(self._scope(parent_run_id, asker))  # type: ignore[arg-type]
            for model_id in reversed(scope.models if scope else ()):
                if model_id in self._models:
                    return self._models[model_id].question
            return None

    def scope(self, run_id: UUID | None, *, asker: str = "") -> UUID | None:
        """The run itself, or the nearest run above it that does more than wrap the asker's run."""
        with self._lock:
            return self._scope(run_id, asker)

    def _scope(self, run_id: UUID | None, asker: str) -> UUID | None:
        while run_id is not None and (run := self._runs.get(run_id)) and run.parent:
            # A retry has the name of what it wraps.
            if not (run.name.startswith(_WRAPPERS) or (asker and run.name == asker)):
                break
            run_id = run.parent
        return run_id

    def _ancestors(self, run_id: UUID | None) -> list[_Run]:
        found: list[_Run] = []
        while run_id is not None and (run := self._runs.get(run_id)) and len(found) < self.limit:
            found.append(run)
            run_id = run.parent
        return found

    # What is recorded ----------------------------------------------------------------

    def _open(self, run_id: UUID, parent_run_id: UUID | None, *, name: str | None = None) -> None:
        with self._lock:
            self._runs[run_id] = _Run(parent=parent_run_id, name=name or "")
            while len(self._runs) > 8 * self.limit:
                self._runs.popitem(last=False)

    def _close(self, run_id: UUID) -> None:
        with self._lock:
            self._runs.pop(run_id, None)

    def _record(self, run_id: UUID, parent_run_id: UUID | None, question: Question) -> None:
        if _paused.get():
            return
        with self._lock:
            above = self._ancestors(parent_run_id)
            self._models[run_id] = _Model(question)
            for run in above:
                run.models.append(run_id)
            while len(self._models) > self.limit:
                old_id, old = self._models.popitem(last=False)
                for message_id in old.message_ids:
                    self._by_message[message_id].remove(old_id)
                    if not self._by_message[message_id]:
                        del self._by_message[message_id]

    def _bind(self, run_id: UUID, message: Any) -> None:
        message_id = getattr(message, "id", None)
        if not isinstance(message_id, str):
            return
        with self._lock:
            model = self._models.get(run_id)
            if model is not None and message_id not in model.message_ids:
                model.message_ids.add(message_id)
                self._by_message.setdefault(message_id, []).append(run_id)

    # LangChain's callbacks -----------------------------------------------------------

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Remember where in the tree the run is."""
        self._open(run_id, parent_run_id, name=kwargs.get("name"))

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Remember where in the tree the run is."""
        self._open(run_id, parent_run_id)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run; the questions below it stay findable by message id."""
        self._close(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._close(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._close(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the run."""
        self._close(run_id)

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: Sequence[Sequence[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the question, without image data."""
        question = question_of(messages[0], with_data=False) if messages else Question()
        self._record(run_id, parent_run_id, question)

    def on_llm_start(
        self, serialized: Any, prompts: Sequence[str], *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Keep the prompt of a completion model, all of it: it has no turns to tell apart."""
        self._record(run_id, parent_run_id, Question(text=prompts[0] if prompts else None))

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        """Bind the id of the message that begins to stream."""
        self._bind(run_id, getattr(chunk, "message", None))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Bind the ids of the finished messages."""
        for generations in response.generations:
            for generation in generations:
                self._bind(run_id, getattr(generation, "message", None))


@contextmanager
def recording_paused() -> Iterator[None]:
    """Record no model that runs in here: a detector that asks one of its own asks no question of the user."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


_recorder: QuestionRecorder | None = None
_install_lock = threading.Lock()


def install_recorder() -> QuestionRecorder:
    """The process's recorder, put into every LangChain run from now on."""
    global _recorder  # noqa: PLW0603
    with _install_lock:
        if _recorder is None:
            recorder = QuestionRecorder()
            # The default, not a set value: it then holds in every thread and context.
            variable: ContextVar[Any] = ContextVar("protector_question_recorder", default=recorder)
            register_configure_hook(variable, inheritable=True)
            _recorder = recorder
        return _recorder


def installed_recorder() -> QuestionRecorder | None:
    """The process's recorder, if some detector asked for one."""
    return _recorder
