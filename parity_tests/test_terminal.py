"""What a training prints where nobody reads it."""

import os
import subprocess
import sys

import pytest
from helpers import DIGITS, SCRIPTS


def test_output_that_nobody_reads_ends_no_training(tmp_path):
    """The reader leaves after the first line, as `head -1` does."""
    run = tmp_path / "run"
    command = [sys.executable, SCRIPTS / "train_torch.py", *DIGITS, "--epochs", "3", "--steps", "60", "--out", run]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert (run / "summary.json").exists()


def test_a_full_disk_below_the_output_ends_no_process(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    code = (
        "from mixer_common.terminal import outlast_output\noutlast_output()\n"
        f"print('lost', flush=True)\nopen({str(tmp_path / 'done')!r}, 'w').close()\nprint('lost at the end')"
    )
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", code], stdout=full, check=True)
    assert (tmp_path / "done").exists()


def test_names_in_any_bytes_are_printed():
    code = (
        "import os\nfrom mixer_common.errors import run_script\n"
        "def main():\n    print(os.fsdecode(b'caf\\xe9'), '\\u65e5', 'MPLBACKEND' in os.environ)\nrun_script(main)"
    )
    environment = os.environ | {"PYTHONIOENCODING": "cp1252:strict", "MPLBACKEND": "module://missing.backend"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert output.decode("cp1252").split() == ["caf\\udce9", "\\u65e5", "False"]
