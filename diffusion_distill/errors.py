"""Errors that a person can act on: one clear line at the command line, no traceback."""


class Field(str):
    """The full name of a config's field, as a part of a message: "config.data.split"."""


class UserError(ValueError):
    """A mistake in what was asked for; the message names the field, the value and the way out.

    Attributes:
        parts: of the message. Where fields in it are `Field`s, a command that has flags in their
            place can name those.
    """

    def __init__(self, *parts: object):
        super().__init__("".join(map(str, parts)))
        self.parts = parts


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or damaged; the message names the file."""


class BucketError(OSError):
    """A bucket that cannot be reached, or may not be used; the message names the address."""


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite; the message names the stage and the step."""


def reason(error: Exception) -> str:
    """The last line of what an error says: after others' tracebacks and settings, it says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


class Stopped(Exception):
    """The run was asked to stop, and has saved what it had.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}; the same command goes on from here")
        self.signum = signum
