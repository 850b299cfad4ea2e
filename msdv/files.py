"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msdv.errors import UsageError

_PREFIX = ".unfinished-"


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path` (same suffix); rename it to `path` when the block ends without error.

    The parent folder is made. On any error, also an interrupt, the temporary file is removed and what stood at
    `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner reads; a result is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Like `write_file` for a folder: filled elsewhere (beside `path`), then renamed.

    A folder that stands at `path` is replaced only after the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_unfinished(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder of this module, left over by a killed process."""
    return path.name.startswith(_PREFIX)


def refuse_overwrite(path: Path, overwrite: bool) -> None:
    """Raise UsageError if `path` exists and may not be overwritten. An empty folder counts as nothing."""
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not overwrite:
        raise UsageError(f"{path} exists: choose another name, or pass --overwrite to replace it")
