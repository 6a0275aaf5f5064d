"""Processes that measure in turn: each is started once and commanded over a pipe; those not commanded wait.

The parent starts a Worker; the process runs `main`, which builds what is measured and calls its methods.
"""

import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mixer_common.errors import UserError
from mixer_common.machine import is_memory_exhausted


class Unavailable(Exception):
    """What is to be measured does not run here; the message is one line that says why."""


class OutOfMemory(Exception):
    """A worker had too little memory, or was killed for it."""


class Worker:
    """A process in which one thing is measured. Its output goes to a file in `folder`, not to the terminal."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]):
        self.name, self._log = name, folder / f"{name}.log"
        self._pipe, theirs = Pipe()
        path = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()", str(theirs.fileno())],
                env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # its own group: no Ctrl-C reaches it, and its children end with it

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns in the process. The first is `start`: of a module and what to give its `create`,
        whose `runtime` comes back.

        Raises UserError and Unavailable as they were raised there; OutOfMemory; RuntimeError with the
        process's traceback on anything else.
        """
        try:
            self._pipe.send((method, arguments))
            while not self._pipe.poll(1):
                # A child of the process may hold the pipe open after its end.
                if self._process.poll() is not None and not self._pipe.poll():
                    raise EOFError
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            if (code := self._process.wait()) == -signal.SIGKILL:
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
    pipe, measured = Connection(int(sys.argv[1])), None
    try:
        while True:
            method, arguments = pipe.recv()
            try:
                if method == "start":
                    module, setup = arguments
                    measured = importlib.import_module(module).create(setup)
                    reply = "value", measured.runtime
                else:
                    reply = "value", getattr(measured, method)(*arguments)
            except Exception as error:
                reply = _reply(error)
            pipe.send(reply)
    except (EOFError, ConnectionError):
        os.killpg(0, signal.SIGKILL)  # with its children


def _reply(error: Exception) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, UserError):
        return "user", text
    if isinstance(error, Unavailable):
        return "unavailable", text
    if isinstance(error, ModuleNotFoundError):
        return "unavailable", f"the package {error.name} is not installed"
    if is_memory_exhausted(error):
        return "memory", text.strip().split("\n")[0]
    return "error", traceback.format_exc()
