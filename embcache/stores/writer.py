"""One thread that does all the writing of a store, so that no interrupt of a caller can leave a transaction open."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from embcache.errors import StoreBusy

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Errand:
    """One action to carry out, and what became of it. Only one side can win: ``start()`` or ``withdraw()``."""

    __slots__ = ("_state", "action", "outcome")

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action
        self.outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._state = threading.Lock()

    def start(self) -> bool:
        return self._state.acquire(blocking=False)

    withdraw = start


class Writer:
    """Runs actions one after the other on a thread of its own."""

    def __init__(self, name: str, failed_late: Callable[[BaseException], None] = lambda _: None) -> None:
        """Start the thread: here and not at the first action, since an interrupt may leave a start half done.

        Args:
            name: of the thread.
            failed_late: called with what an action raised that nobody waited for any more.
        """
        self._name = name
        self._failed_late = failed_late
        self._errands: queue.SimpleQueue[_Errand | None] = queue.SimpleQueue()
        self._current: _Errand | None = None
        self._overdue: _Errand | None = None
        self._done = 0
        self.busy = threading.Lock()
        """Held while an action runs."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._start()

    def run(self, action: Callable[[], T], patience: float) -> T:
        """Carry out ``action`` on the thread and return what it returns, or raise what it raises.

        A caller that is interrupted while it waits leaves the action to end by itself.

        Args:
            action: what to do.
            patience: seconds to wait while nothing moves; none at all while an earlier action is overdue.

        Raises:
            StoreBusy: it was not done in time. Unless ``started``, it never will be.
        """
        if self._overdue is not None and self._overdue is self._current:
            raise StoreBusy("the cache is still busy with an earlier write")
        errand = _Errand(action)
        self._start()
        self._errands.put(errand)
        while True:
            done = self._done
            try:
                result, error = errand.outcome.get(timeout=patience)
                break
            except queue.Empty:
                if self._done != done:
                    continue  # others had their turn meanwhile, so that ours will come
                if errand.withdraw():
                    raise StoreBusy(f"the cache did not take a write within {patience:g} s") from None
                self._overdue = errand
                raise StoreBusy(f"the cache did not end a write within {patience:g} s", started=True) from None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]  # the queue carries every action's result

    def stop(self) -> None:
        """End the thread once it has done what was asked; another ``run()`` starts a new one."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._errands.put(None)
            if thread is not threading.current_thread():  # which may hold the last reference to a store
                thread.join(timeout=1.0)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (errand := self._errands.get()) is not None:
            if errand.start():
                self._current = errand
                try:
                    with self.busy:
                        result = errand.action()
                    errand.outcome.put((result, None))
                    del result
                except BaseException as error:  # noqa: BLE001 - it is raised again where the action was asked for
                    errand.outcome.put((None, error))
                    if self._overdue is errand:
                        self._failed_late(error)
                self._current = None
                if self._overdue is errand:
                    self._overdue = None
                self._done += 1
            del errand  # it holds the store, which may be nobody's by now
