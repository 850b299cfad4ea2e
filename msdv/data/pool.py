"""Worker processes for prep: one video each at a time; one that crashes or hangs only costs the video it had.

Not multiprocessing: a pool of it is broken by the first worker that dies, and it runs the caller's script again in
each worker.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from msdv.errors import MsdvError

# Long for a worker to import what it needs, even from a slow disk with a virus scanner in between.
_STARTS_WITHIN = 180.0  # seconds
_DIES_WITHIN = 10.0  # seconds
# Each worker has one processor, and numpy's threads would only wait for each other.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from msdv.data.worker import main; main()"


@dataclass(frozen=True)
class Answer:
    """What a worker says of a request: number `request` of the list.

    `message` holds one of `frames` (written since the last time; 0 says that it gets on), `rows` (finished), `failed`
    (why not).
    """

    request: int
    message: dict[str, Any]


class Pool:
    """Worker processes for a list of requests (see worker.py). Leaving the `with` block ends them at once.

    A request that a worker says nothing about for `timeout` seconds is given up: `failed` is its answer.
    """

    def __init__(self, requests: Sequence[dict[str, Any]], workers: int, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        for item in enumerate(requests):
            self._waiting.put(item)
        self._answers: queue.SimpleQueue[Answer | Exception | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._workers: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(min(workers, len(requests)))]

    def __enter__(self) -> "Pool":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        for worker in list(self._workers):
            worker.kill()
        for thread in self._threads:
            thread.join()

    def answers(self) -> Iterator[Answer]:
        """What the workers say, as it comes, until every request has its `rows` or `failed`.

        Raises OSError if frames can't be written (a full disk), MsdvError if a worker can't be started.
        """
        running = len(self._threads)
        while running:
            try:
                answer = self._answers.get(timeout=0.5)  # without an end, Windows can't interrupt it
            except queue.Empty:
                continue
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                running -= 1
            else:
                yield answer

    def _serve(self) -> None:
        worker: _Worker | None = None
        try:
            while not self._stopping.is_set():
                try:
                    number, request = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if worker is None:
                    worker = _Worker()
                    self._workers.add(worker)
                    worker.wait_until_ready()
                if self._stopping.is_set():  # it may have come after the others were ended
                    break
                for message in worker.ask(request, self._timeout):
                    if "stopped" in message:
                        raise OSError(*message["stopped"])
                    self._answers.put(Answer(number, message))
                if not worker.alive:
                    self._workers.discard(worker)
                    worker.close()
                    worker = None
        except Exception as error:
            if not self._stopping.is_set():
                self._answers.put(error)
        finally:
            if worker is not None:
                self._workers.discard(worker)
                worker.close()
            self._answers.put(None)


class _Worker:
    """The near end of a worker process."""

    def __init__(self) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # In a group of its own: Ctrl-C is for us, who then end it without a traceback from each.
        group: dict[str, Any]
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        else:
            group = {"start_new_session": True}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="ascii",
            env={**os.environ, **_ONE_THREAD},
            **group,
        )
        # A thread reads, because on Windows nothing else can wait for a pipe with an end to its patience.
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.alive = True

    def _read(self) -> None:
        assert self._process.stdout
        with suppress(OSError, ValueError):  # half a line of a process that died in it
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _next_line(self, timeout: float) -> str | None:
        """What the process says next; empty if it has ended, None if it has said nothing for `timeout` seconds."""
        # The second more is for a computer that slept in between: its time may be up before the process has run again.
        for seconds in (timeout, 1.0):
            with suppress(queue.Empty):
                return self._lines.get(timeout=seconds)
        return None

    def wait_until_ready(self) -> None:
        """Raises MsdvError with what the process said if it ended instead, or never got ready."""
        line = self._next_line(_STARTS_WITHIN)
        if line is None:
            raise MsdvError(
                f"can't start a worker process (not ready after {_STARTS_WITHIN:g} s): is the computer overloaded, or"
                " a disk gone?"
            )
        if not line:
            self._wait()
            self._stderr.seek(0)
            said = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
            raise MsdvError(f"can't start a worker process ({said[-1] if said else self._how_it_ended()})")

    def ask(self, request: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
        """Answers up to the last one; a crash is one too, and a silence of `timeout` seconds."""
        assert self._process.stdin
        with suppress(OSError):  # it is dead: the empty line says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while line := self._next_line(timeout):
            try:
                message = json.loads(line)
            except ValueError:  # it died while it spoke
                break
            yield message
            if "frames" not in message:
                return
        if line is None:
            self.kill()
            yield {"failed": f"given up: no progress for {timeout:g} s"}
            return
        self._wait()
        yield {"failed": f"the decoder crashed on it ({self._how_it_ended()})"}

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code is None:
            return "it does not end"
        if code == -9:
            return "the system killed it; if memory ran out, use fewer --workers"
        if code < 0:
            with suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"

    def _wait(self) -> None:
        """It has said its last word: give it the time to die of what it dies of."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DIES_WITHIN)
        self.kill()
        self._bury()

    def _bury(self) -> None:
        # A process that waits for a dead network drive can't even be killed: the system ends it some day.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DIES_WITHIN)

    def kill(self) -> None:
        """End it; `close` has still to be called by the thread that talks to it."""
        self.alive = False
        self._process.kill()

    def close(self) -> None:
        """End it and free what it held."""
        self.kill()
        self._bury()
        self._reader.join(_DIES_WITHIN)
        pipes = [self._process.stdin, self._stderr]
        if not self._reader.is_alive():  # closing waits for who reads
            pipes.append(self._process.stdout)
        for pipe in pipes:
            with suppress(OSError):  # a request that was never read
                if pipe:
                    pipe.close()
