"""How a script ends on an error."""

import os
import subprocess
import sys

import pytest
from helpers import SCRIPTS

from mixer_common.errors import UserError, run_script


def test_user_errors_are_one_sentence(capsys):

    def main() -> None:
        raise UserError("the value is 3, but must be 4: change it.")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the value is 3, but must be 4: change it.\n"


def test_ctrl_c_anywhere_ends_without_a_traceback(capsys):

    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebooks_backend_ends_no_script(script):
    """Jupyter hands its MPLBACKEND to what it starts; matplotlib refuses to be imported where the module is missing."""
    environment = os.environ | {"MPLBACKEND": "module://missing.backend"}
    process = subprocess.run([sys.executable, script, "--help"], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "matplotlib" not in process.stderr
