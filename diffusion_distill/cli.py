"""What the command lines share: mistakes end in one line and a non-zero exit."""

import os
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from diffusion_distill.errors import CheckpointError, NonFiniteError, Stopped, UserError

EXIT_MISTAKE = 2  # something that a person can put right; the message says what
EXIT_NON_FINITE = 3
TRACEBACK = "DIFFUSION_DISTILL_TRACEBACK"  # set it to 1 to see where a message came from


def run(main: Callable[[list[str]], None]) -> None:
    """Parses flags, runs main, and exits: 0, or with one line on standard error and not 0."""
    # Orbax and JAX warn of what is meant here (read-only access, say); their errors still show.
    logging.set_verbosity(logging.ERROR)
    try:
        argv = app.parse_flags_with_usage(sys.argv)
    except (ValueError, AttributeError, TypeError, KeyError, OSError) as error:
        # A config file's own mistakes, and those in --config.field=value, surface here.
        fail(EXIT_MISTAKE, error)
    try:
        main(argv)
    except (UserError, CheckpointError, flags.Error) as error:
        fail(EXIT_MISTAKE, error)
    except NonFiniteError as error:
        fail(EXIT_NON_FINITE, error)
    except OSError as error:
        fail(EXIT_MISTAKE, error)
    except Stopped as stop:
        fail(128 + stop.signum, stop)
    except KeyboardInterrupt as error:
        fail(128 + signal.SIGINT, error or "interrupted")


def fail(code: int, reason: BaseException | str) -> None:
    """Says why in one line, and exits."""
    if os.environ.get(TRACEBACK) == "1" and isinstance(reason, BaseException):
        raise reason
    text = " ".join(str(reason).split()) or type(reason).__name__
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def no_arguments(argv: list[str]) -> None:
    """Raises UserError where words are left that are not flags."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; everything is given by --flags")


def required(name: str, value: str | None) -> str:
    """The value of a flag that must be given."""
    if not value:
        raise UserError(f"--{name} must be given")
    return value


def at_least(name: str, value: int, low: int) -> int:
    """The value of a flag that has a lower bound."""
    if value < low:
        raise UserError(f"--{name} is {value}; it must be at least {low}")
    return value
