"""The one kind of error that a user can cause, and how a script ends on it."""

import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message is one sentence that names the value, what was expected and what to do."""


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's `main` and exits: with its return value, or on bad input with one line and code 2."""
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
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}; check the path, its permissions and the free space, "
            "then run the command again.",
            file=sys.stderr,
        )
        code = 2
    sys.stdout.flush()
    sys.exit(code or 0)
