"""Threads beside the network: calls done in order, each with its answer handed on, and given up where none comes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Answer = Callable[
    [Any, float], None
]  # what the call returned, or the exception that it raised; and the seconds it took


class NoAnswer(Exception):
    """A call that was given up."""


@dataclass
class _Call:
    make: Callable[[], Any]
    answer: Answer
    begun: float = 0.0
    over: bool = False


def left(error: BaseException) -> BaseException:
    """The error; for an exit() in a user's code one that says so, since it is a failure of that call and no end of the run."""
    return RuntimeError(f"it called exit({error.code!r})") if isinstance(error, SystemExit) else error


class Inline:
    """Makes each call at once, in the thread that asks. A Worker's place where a second thread would only take the processor
    from the network: PyTorch's threads wait for each other far longer when another thread has a set of its own."""

    waiting = 0

    def do(self, make: Callable[[], Any], answer: Answer) -> None:
        start = time.perf_counter()
        try:
            found = make()
        except (Exception, SystemExit) as error:
            found = left(error)
        answer(found, time.perf_counter() - start)

    def check(self) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """Nothing to end."""

    def join(self, seconds: float) -> None:
        """Nothing to wait for."""


class Worker:
    """One thread that makes calls in the order they are given. A call that takes longer than ``patience`` seconds is given
    up when ``check`` is next asked: its answer is NoAnswer, and a fresh thread goes on with those behind it."""

    def __init__(self, name: str, patience: float | None = None):
        self.name, self.patience = name, patience
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._now: _Call | None = None
        self._thread: threading.Thread | None = None
        self._last: threading.Thread | None = None
        self.waiting = 0

    def do(self, make: Callable[[], Any], answer: Answer) -> None:
        """``answer`` is called in the worker's thread."""
        with self._lock:
            self.waiting += 1
            if self._thread is None:
                self._start()
        self._calls.put(_Call(make, answer))

    def check(self) -> None:
        """Give up a call that has taken too long."""
        with self._lock:
            call = self._now
            if self.patience is None or call is None or time.monotonic() - call.begun < self.patience:
                return
            call.over, self._now = True, None
            self.waiting -= 1
            self._start()  # the old thread ends by itself when its call returns, if ever
        call.answer(NoAnswer(f"no answer in {self.patience:g} seconds"), self.patience)

    def close(self) -> None:
        """No more calls; those that wait are dropped."""
        with self._lock:
            self._last, self._thread = self._thread, None
        with suppress(queue.Empty):  # asked for and not counted: the thread may be taking the last one
            while True:
                self._calls.get_nowait()
        if self._last is not None:
            self._calls.put(None)

    def join(self, seconds: float) -> None:
        """After ``close``: until the thread has ended, this long at most. A thread that is inside a library's code when the
        interpreter ends aborts the whole process, so none is left behind that can be waited for."""
        if self._last is not None:
            self._last.join(seconds)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"secondlook-{self.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        mine = threading.current_thread()
        while (call := self._calls.get()) is not None:
            with self._lock:
                call.begun, self._now = time.monotonic(), call
            start = time.perf_counter()
            try:
                found = call.make()
            except BaseException as error:
                found = left(error)
            seconds = time.perf_counter() - start
            with self._lock:
                if call.over:
                    return
                self._now = None
            call.answer(found, seconds)
            with self._lock:
                self.waiting -= 1  # only now: whoever waits for the last answer waits for what it says
                if self._thread is not mine:
                    return
