"""UserError, the error that a user can cause and repair, and how a script ends on it and on others like it."""

import io
import os
import signal
import sys
from collections.abc import Callable

# The extra of this project that brings each package which is no dependency of its own.
_EXTRAS = {
    "jax": "jax",
    "flax": "jax",
    "optax": "jax",
    "tensorflow_datasets": "jax",
    "torch": "torch",
    "torchvision": "torch",
}


class UserError(Exception):
    """Bad input: the message is one sentence that names the value, what was expected and what to do."""


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's `main` and exits with its return value, an exit code or None for 0.

    Bad input, too little memory, errors of the file system and a framework that is not installed end in one line on
    stderr and code 2; Ctrl-C in 130. A reader of stdout that goes away, such as `head`, ends the script silently with
    code 141, the one that a shell gives SIGPIPE.
    """
    _adapt_environment()
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    except MemoryError as error:
        print(
            f"error: there is not enough memory ({error}); choose smaller sizes, then run the command again.",
            file=sys.stderr,
        )
        code = 2
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        print(
            f"error: the package {error.name} is needed here and is not installed: install it with: "
            f"pip install 'mlp-mixer-parity[{_EXTRAS[error.name]}]', or in a checkout: pip install -e '.[all]'.",
            file=sys.stderr,
        )
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes nowhere
        code = 141
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        filename = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{filename}; check the path, its permissions and the free space, "
            "then run the command again.",
            file=sys.stderr,
        )
        code = 2
    sys.stdout.flush()
    sys.exit(code or 0)


def _adapt_environment() -> None:
    """Makes a script independent of two things in the user's environment that would end it.

    Names in other bytes than the terminal's encoding are printed escaped. MPLBACKEND, which a notebook sets for its own
    kernel, names a module that this environment may not have; the scripts draw into files, without any backend.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a notebook it is something else
            stream.reconfigure(errors="backslashreplace")
    os.environ.pop("MPLBACKEND", None)
