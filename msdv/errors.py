"""What can go wrong, in words. The library raises; only the command line prints and exits."""


class MsdvError(Exception):
    """Something failed that the user can mend. The message is one line: what, the value, the next step."""

    exit_code = 1


class UsageError(MsdvError):
    """A command was given what it can't use: a path that does not exist, a value out of range, an unknown suffix."""

    exit_code = 2
