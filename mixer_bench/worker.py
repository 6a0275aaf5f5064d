"""Processes that are measured in turn: each is started once and commanded over a pipe; those not commanded wait.

The parent starts a Worker; its process runs `main`, which creates one workload and calls its methods, or runs a script.
"""

import importlib
import math
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mixer_common.errors import UserError
from mixer_common.machine import is_memory_exhausted

SECONDS_TO_STOP = 12.0  # between SIGTERM and SIGKILL: a training writes its checkpoint meanwhile


class Unavailable(Exception):
    """An implementation does not run here; the message is one line that says why."""


class OutOfMemory(Exception):
    """A worker had too little memory, or was killed for it."""


class OutOfTime(Exception):
    """A worker was stopped, or not started, because its time was up."""


def one_line(error: Exception) -> str:
    """The first line of an error from a worker, or of another error with its type."""
    line = str(error).strip().split("\n")[0]
    from_worker = isinstance(error, UserError | Unavailable | OutOfMemory | OutOfTime | RuntimeError)
    return line if from_worker else f"{type(error).__name__}: {line}"


class Worker:
    """A process in which one thing is measured, a context that ends the process.

    What it prints goes to the file NAME.log in `folder`, not to the terminal. From `deadline` on, a time.monotonic(),
    whatever it runs gets SIGTERM, and SECONDS_TO_STOP later SIGKILL.
    """

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], deadline: float = math.inf):
        self.name, self._log, self._deadline = name, folder / f"{name}.log", deadline
        self._stopped_at: float | None = None
        self._pipe, other_end = Pipe()
        path = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
        with other_end, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()", str(other_end.fileno())],
                env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
                pass_fds=[other_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # its own group: no Ctrl-C reaches it, and its children end with it

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Sends a command, waits for its end and returns its result. Arguments and errors are those of `send` and
        `receive`."""
        self.send(method, *arguments)
        while not self.wait(1):
            pass
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Commands one of:

        start, of a module's name and what its `make_workload` is called with: creates the workload; its `runtime` is
        the result. It is the first command.
        run_script, of a path and a list of options: runs a script's `main`; its exit code is the result.
        A method of the workload, and its arguments.
        """
        with suppress(ConnectionError):  # `receive` finds out why the process has ended
            self._pipe.send((method, arguments))

    def wait(self, seconds: float) -> bool:
        """Whether the command, or the process, has ended; waits for up to so many seconds."""
        # A child of the process may hold the pipe open after its end.
        if self._pipe.poll(seconds) or self._process.poll() is not None:
            return True
        now = time.monotonic()
        if self._stopped_at is None:
            if now > self._deadline:
                self._stopped_at = now
                self._process.terminate()
        elif now > self._stopped_at + SECONDS_TO_STOP:
            self._process.kill()
        return False

    def receive(self) -> Any:
        """The result of a command that has ended.

        Raises UserError and Unavailable as they were raised there; OutOfMemory; OutOfTime where the process ended
        because of the deadline; RuntimeError on anything else, whose first line names the error and whose others are
        the process's traceback or log.
        """
        try:
            if not self._pipe.poll():
                raise EOFError
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            if self._stopped_at is not None:
                raise OutOfTime(f"{self.name} was stopped when its time was up") from None
            if code == -signal.SIGKILL:
                raise OutOfMemory(f"{self.name} was killed by the system") from None
            raise RuntimeError(f"{self.name} ended with code {code}:\n{self._log.read_text()[-4000:]}") from None
        if kind == "value":
            return value
        raise {"user": UserError, "unavailable": Unavailable, "memory": OutOfMemory}.get(kind, RuntimeError)(value)

    def close(self) -> None:
        self._pipe.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def main() -> None:
    """Serves one parent until it closes the pipe, or is gone."""
    pipe, workload = Connection(int(sys.argv[1])), None
    try:
        while True:
            method, arguments = pipe.recv()
            try:
                if method == "start":
                    module, config = arguments
                    workload = importlib.import_module(module).make_workload(config)
                    reply = "value", workload.runtime
                elif method == "run_script":
                    reply = "value", _run_script(*arguments)
                else:
                    reply = "value", getattr(workload, method)(*arguments)
            except Exception as error:
                reply = _error_reply(error)
            pipe.send(reply)
    except (EOFError, ConnectionError):
        os.killpg(0, signal.SIGKILL)  # with its children


def _run_script(path: Path, options: Sequence[str]) -> int:
    sys.argv = [str(path), *options]
    return runpy.run_path(str(path))["main"]() or 0


def _error_reply(error: Exception) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, UserError):
        return "user", text
    if isinstance(error, Unavailable):
        return "unavailable", text
    if isinstance(error, ModuleNotFoundError):
        return "unavailable", f"the package {error.name} is not installed"
    if is_memory_exhausted(error):
        return "memory", text.strip().split("\n")[0]
    return "error", f"{type(error).__name__}: {text}\n{traceback.format_exc()}"
