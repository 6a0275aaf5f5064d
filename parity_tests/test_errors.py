"""How a script ends on an error."""

import pytest

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
