"""Running blocking work beside the caller, with a time limit.

Daemon threads rather than a pool: a detector that hangs cannot be stopped, but it must
neither use up a pool's workers nor keep the process alive.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def start_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Call ``function`` in a daemon thread, in a copy of the caller's context."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on a waiter's cancellation cannot reach it
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result = context.run(function, *args, **kwargs)
        except Exception as error:  # handed to whoever waits
            # An asyncio future refuses a StopIteration, and its waiter would wait for ever (PEP 479).
            future.set_exception(_ordinary(error) if isinstance(error, StopIteration) else error)
        except BaseException as error:
            # SystemExit would end the waiter's event loop, CancelledError look like the waiter's own cancellation.
            future.set_exception(_ordinary(error))
        else:
            future.set_result(result)

    threading.Thread(target=work, name="protector-guardrails", daemon=True).start()
    return future


def _ordinary(error: BaseException) -> RuntimeError:
    failure = RuntimeError(f"{type(error).__name__} was raised in a thread")
    failure.__cause__ = error
    return failure


async def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await ``function`` run in a thread; cancelling stops the waiting, not the work."""
    return await asyncio.wrap_future(start_in_thread(function, *args, **kwargs))
