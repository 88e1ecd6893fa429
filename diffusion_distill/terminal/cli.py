"""What the command lines share: mistakes end in one line and a non-zero exit."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict

from diffusion_distill.devices import compiler, distributed, memory
from diffusion_distill.errors import CheckpointError, NonFiniteError, Stopped, UserError, reason
from diffusion_distill.terminal.console import unbroken

EXIT_MISTAKE = 2  # something that a person can put right; the message says what
EXIT_NON_FINITE = 3
EXIT_UNKNOWN = 1  # Python's own for an error that nobody foresaw
TRACEBACK = "DIFFUSION_DISTILL_TRACEBACK"  # set it to 1 to see where a message came from


# Flags are defined for the module that calls `run`, so that its --help has them.
flags.disclaim_key_flags()


def run(main: Callable[[list[str]], None], several: bool = False) -> None:
    """Parses flags and runs main. An error ends in one line on standard error and a code not 0.

    `main` gets the words that are not flags. With `several` the command may run as several
    processes, and has the flags that join them.
    """
    # Orbax logs what is meant here (read-only access, say), and each error besides raising it.
    logging.set_verbosity(logging.FATAL)
    for name in ("stdout", "stderr"):  # None where it was closed before the start
        setattr(sys, name, getattr(sys, name) or open(os.devnull, "w"))
    sys.unraisablehook = _unraisablehook
    for stream in (sys.stdout, sys.stderr):  # a terminal may know no "±": no reason to end
        stream.reconfigure(errors="backslashreplace")
    memory.keep()
    join = _define_process_flags() if several else lambda: None
    try:
        words = _parse(sys.argv)
        join()
        with compiler.own_settings():
            main(words)
    except (UserError, CheckpointError) as error:
        fail(EXIT_MISTAKE, str(error), error)
    except NonFiniteError as error:
        error.said_by = 0
        fail(EXIT_NON_FINITE, str(error), error)
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail(EXIT_MISTAKE, named, error)
    except Stopped as stop:
        stop.said_by = 0
        fail(128 + stop.signum, str(stop), stop)
    except KeyboardInterrupt as error:
        fail(128 + signal.SIGINT, "interrupted", error)
    except Exception:  # no mistake of a person's: a bug, shown with its traceback
        if distributed.several():  # Python would wait for the others at its exit, maybe for ever
            traceback.print_exc()
            os._exit(EXIT_UNKNOWN)
        raise


def _define_process_flags() -> Callable[[], None]:
    """Defines flags that say who the other processes are; returns what joins them."""
    coordinator = flags.DEFINE_string(
        "coordinator", None, "Of several processes: HOST:PORT of the first, on a free port."
    )
    num_processes = flags.DEFINE_integer("num_processes", None, "How many there are.")
    process_id = flags.DEFINE_integer("process_id", None, "Which this one is, from 0 on.")
    heartbeat_timeout = flags.DEFINE_integer(
        "heartbeat_timeout", 60, "Seconds after which a process that is silent ends them all."
    )
    return lambda: distributed.initialize(
        coordinator.value,
        num_processes.value,
        process_id.value,
        at_least("heartbeat_timeout", heartbeat_timeout.value, 1),
    )


def _unraisablehook(unraisable) -> None:
    """Leaves out what TensorStore's threads print, hundreds of times, after one failed write."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; returns the words that are not flags. Raises UserError."""
    app.define_help_flags()
    argv = [*argv]
    for number, word in enumerate(argv):
        flag, _, file = word.partition("=")
        if flag.lstrip("-") == "config" and file:
            argv[number] = f"{flag}={os.path.expanduser(file)}"  # shells leave it as it is
            if not re.search(r"\.py(:|$)", file):
                known = "a run's config.json is read by --workdir where that is enough"
                raise UserError(f"{word} must name a config file in Python, FILE.py; {known}")
    try:
        return flags.FLAGS(argv)
    except (LookupError, AttributeError) as error:
        if getattr(error, "name", None) == "get_config":  # the config file lacks it
            raise UserError(str(error)) from error
        why = error  # else mostly a field in --config.field=value; the reason is inside others
        while isinstance(why, Exception) and why.args:
            why = why.args[0]
        why = (str(why) or repr(why)).replace("\n", ". ").replace("'", "").replace('"', "")
        raise UserError(f"a --config flag names a field that is not there: {why}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_section_given(argv) or reason(error)) from error
    except (flags.Error, ValueError, TypeError, OSError, SyntaxError, ImportError) as error:
        raise UserError(reason(error)) from error  # of a config file's own, a whole traceback
    except Exception as error:  # of any kind: a config file is a person's own code
        raise UserError(f"the file of --config: {error!r}") from error


def _section_given(argv: list[str]) -> str:
    """Of --config.SECTION=VALUE, what to write instead; "" where there is none."""
    for word in argv:
        name = word.partition("=")[0].lstrip("-")
        if name.startswith("config."):
            found = flags.FLAGS["config"].value
            for part in name.split(".")[1:]:
                found = found[part] if isinstance(found, ConfigDict) else None
            if isinstance(found, ConfigDict):
                return f"--{name} is a section; give its fields: --{name}.{next(iter(found))}=..."
    return ""


def fail(code: int, why: str, cause: BaseException) -> None:
    """Says why in one line, and exits. Where TRACEBACK is set it raises the cause instead.

    The cause's `said_by`, where it has one, is the process that says it: all fail alike.
    """
    if os.environ.get(TRACEBACK) == "1":
        raise cause
    process = distributed.process_id()
    said_by = getattr(cause, "said_by", None)
    if said_by in (None, process):
        where = f"process {process}: " if distributed.several() and said_by != 0 else ""
        with contextlib.suppress(OSError):  # nobody reads it
            print(f"error: {where}{' '.join(why.split())}", file=sys.stderr, flush=True)
    with unbroken():
        sys.stdout.flush()
    if said_by is not None:
        distributed.leave()
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
