"""`scripts/fuzz/inputs.py`: a few damaged files of each kind are read or refused with a sentence."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz" / "inputs.py"


def test_damaged_files_of_every_kind_are_read_or_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--cases", "42", "--seed", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 15  # a line of titles, and of each kind
