"""Signals that never land in the middle of keeping what is paid for."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def run_interruptibly(loop: asyncio.AbstractEventLoop, waiting: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for tasks; a signal ends the wait, and none of the tasks.

    Python raises `KeyboardInterrupt` wherever the main thread happens to be, which may be inside a
    task that has its reply and has not kept it yet. Here SIGINT and SIGTERM cancel `waiting`
    between two steps of the loop, and only then do what they did before.
    """
    task = loop.create_task(waiting)
    heard: list[tuple[int, FrameType | None]] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append((number, frame))
        loop.call_soon_threadsafe(task.cancel)

    before: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in map(int, (signal.SIGINT, signal.SIGTERM)):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, hear)
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        if not heard:
            raise
        raise KeyboardInterrupt from None
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        for number, frame in heard:
            before[number](number, frame)
