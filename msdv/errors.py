"""What can go wrong, in words. The library raises; only the command line prints and exits."""


class MsdvError(Exception):
    """Something failed that the user can mend. The message is one line: what, the value, the next step."""

    exit_code = 1


class UsageError(MsdvError):
    """A command was given what it can't use: a path that does not exist, a value out of range, an unknown suffix."""

    exit_code = 2


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, of the device or of the computer: libraries have no class for it in common."""
    if {kind.__name__ for kind in type(error).__mro__} & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _OUT_OF_MEMORY)


def first_line(error: Exception) -> str:
    """What an error says, or else its name, for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
