"""One video to folders of frames: the work of a process of its own, so that a video that crashes the decoder only
loses itself.

Requests come in on stdin, answers go out on stdout, a JSON object a line.
"""

import errno
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msdv.data.cutting import make_clips
from msdv.data.manifest import FrameSettings
from msdv.errors import MsdvError

_PROGRESS_EVERY = 0.3  # seconds
_NOT_A_NAME = (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ)


def main() -> None:
    """Answer requests until stdin ends, and then stop at once: nobody waits for the rest."""
    # Libraries print where they like; answers keep the real stdout to themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer(ready=True)
    for request in _requests():
        reporter = _Reporter(answer)
        try:
            rows = make_clips(
                Path(request["video"]),
                Path(request["folder"]),
                FrameSettings(**request["settings"]),
                request["row"],
                reporter,
            )
            answer(rows=rows)
        except MsdvError as error:
            answer(failed=str(error))
        except OSError as error:
            if error.errno in _NOT_A_NAME:  # a disk that came from another system; the next video is called otherwise
                answer(failed=f"its name can't be a folder's there ({error.strerror}): rename it")
                continue
            answer(stopped=[error.errno, error.strerror or str(error), str(error.filename or "")])
        except MemoryError:
            answer(failed="not enough memory for it: use fewer --workers")
        except Exception as error:  # whatever this video does, the next one gets its turn
            answer(failed=f"unexpected {type(error).__name__}: {error}", traceback=traceback.format_exc())


class _Reporter:
    """Passes on the number of frames written, not more often than eyes can follow.

    A call with 0 counts too: it says that the work gets on where nothing is written for long. Silence means that it
    hangs (see Pool); so no thread may call this on a timer.
    """

    def __init__(self, answer: Callable[..., None]) -> None:
        self._answer, self._frames, self._last = answer, 0, time.monotonic()

    def __call__(self, frames: int) -> None:
        self._frames += frames
        if time.monotonic() - self._last > _PROGRESS_EVERY:
            self._answer(frames=self._frames)
            self._frames, self._last = 0, time.monotonic()


def _requests() -> Iterator[dict[str, Any]]:
    received: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            received.put(line)
        os._exit(0)  # the other side is done, or dead

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield json.loads(received.get())
