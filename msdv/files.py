"""Files and folders that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msdv.errors import UsageError

_PREFIX = ".unfinished-"
_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def write_file(path: Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path` (same suffix); rename it to `path` when the block ends without error.

    The parent folder is made. On any error, also an interrupt, the temporary file is removed and what stood at
    `path` before is untouched.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _named(path):
            yield temporary
            # mkstemp makes files that only their owner reads; a result is an ordinary file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            _flush(temporary)
        _rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Like `write_file` for a folder: filled elsewhere (beside `path`), then renamed.

    A folder that stands at `path` is replaced only after the new one is complete. Without `flush` that holds whatever
    becomes of the process, but after a power cut some of its files may be empty: for many files that can be made again.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path.parent))
    try:
        with _named(path):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o777 & ~umask)
            for file in temporary.rglob("*") if flush else ():
                if file.is_file():
                    _flush(file)
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that, whenever the process is killed, it is whole or no longer bears its name. Takes no room
    on the disk. Raises OSError if it can't be renamed."""
    aside = path.with_name(_PREFIX + path.name)
    shutil.rmtree(aside, ignore_errors=True)
    _rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written because there is no room for it."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a folder to `path`, in place of what stands there; another process may be doing the same."""
    for attempt in range(5):
        if not path.exists():
            try:
                _rename(temporary, path)
                return
            except OSError:
                if not path.exists() or attempt == 4:
                    raise
                continue  # it has come up in between
        old = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path.parent))
        try:
            try:
                _rename(path, old / path.name)
            except FileNotFoundError:
                continue  # it has gone in between
            try:
                _rename(temporary, path)
                return
            except OSError:
                if path.exists() and attempt < 4:
                    continue
                _rename(old / path.name, path)
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _flush(file: Path) -> None:
    """Have the content on the disk before the name says that it is there: a power cut may come between."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _rename(source: Path, target: Path) -> None:
    """`Path.replace`, tried for two seconds where Windows' virus scanner or another reader has the file open."""
    for attempt in range(20):
        try:
            source.replace(target)
            return
        except PermissionError:
            if os.name != "nt" or attempt == 19:
                raise
            time.sleep(0.1)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the file system name what was to be written, not the temporary file; libraries report a full disk in
    errors of their own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if "No space left" in str(error) or _is_full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno and _PREFIX in str(error.filename):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _is_full(path: Path) -> bool:
    return path.parent.is_dir() and shutil.disk_usage(path.parent).free < 2**20


def refuse_unwritable(path: Path) -> None:
    """Raise UsageError if nothing can be written at `path`: to be asked before the work."""
    folder = next((folder for folder in path.absolute().parents if folder.exists()), None)
    try:
        if folder is None or not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(prefix=_PREFIX, dir=folder):
            pass
    except OSError as error:
        if is_disk_full(error):
            raise
        why = (error.strerror or str(error)).lower()
        raise UsageError(f"{path} can't be written ({folder}: {why}): choose another place") from error


def is_unfinished(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder of this module, left over by a killed process."""
    return path.name.startswith(_PREFIX)


def refuse_overwrite(path: Path, overwrite: bool) -> None:
    """Raise UsageError if `path` exists and may not be overwritten. An empty folder counts as nothing."""
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not overwrite:
        raise UsageError(f"{path} exists: choose another name, or pass --overwrite to replace it")
