"""Errors that a person can act on: one clear line at the command line, no traceback."""


class UserError(ValueError):
    """A mistake in what was asked for; the message names the field, the value and the way out."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or damaged; the message names the file."""


class BucketError(OSError):
    """A bucket that cannot be reached, or may not be used; the message names the address."""


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite; the message names the stage and the step."""


class Stopped(Exception):
    """The run was asked to stop, and has saved what it had.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}; the same command goes on from here")
        self.signum = signum
