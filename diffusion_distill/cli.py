"""What the command lines share: mistakes end in one line and a non-zero exit."""

import os
import re
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
    # Orbax logs what is meant here (read-only access, say), and each error besides raising it.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _unraisablehook
    try:
        main(_parse(sys.argv))
    except (UserError, CheckpointError) as error:
        fail(EXIT_MISTAKE, str(error), error)
    except NonFiniteError as error:
        fail(EXIT_NON_FINITE, str(error), error)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail(EXIT_MISTAKE, named, error)
    except Stopped as stop:
        fail(128 + stop.signum, str(stop), stop)
    except KeyboardInterrupt as error:
        fail(128 + signal.SIGINT, "interrupted", error)


def _unraisablehook(unraisable) -> None:
    """Leaves out what TensorStore's threads print, hundreds of times, after one failed write."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str]) -> list[str]:
    """The words left when flags are taken out.

    Raises:
        UserError: a flag, or a config file or field that a flag names, is wrong.
    """
    app.define_help_flags()
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError) as error:  # mostly a field in --config.field=value
        if "get_config" in str(error):
            raise UserError(str(error)) from error
        reason = re.sub(r"\\+n", ". ", str(error.args[0]))
        reason = re.sub(r"[\\'\"]", "", reason)
        raise UserError(f"a --config flag names a field that is not there: {reason}") from error
    except (flags.Error, ValueError, TypeError, OSError, SyntaxError, ImportError) as error:
        # Where a config file raised, the message is its whole traceback; the end says why.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(lines[-1] if lines else repr(error)) from error


def fail(code: int, reason: str, cause: BaseException) -> None:
    """Says why in one line, and exits; shows the traceback instead where TRACEBACK is set."""
    if os.environ.get(TRACEBACK) == "1":
        raise cause
    print(f"error: {' '.join(reason.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: on a full disk, threads and exit handlers of TensorBoard's and Orbax's writers
    # would print tracebacks of their own after this line. All that is ours is closed by now.
    os._exit(code)


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
