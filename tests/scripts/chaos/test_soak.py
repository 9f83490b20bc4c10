"""A few sweeps under misfortune; `python scripts/chaos/soak.py --minutes 120` is the long version."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[3] / "scripts" / "chaos" / "soak.py"


@pytest.mark.soak
def test_sweeps_that_meet_misfortune_end_as_undisturbed(tmp_path):
    command = [sys.executable, SOAK, "--seed", "1", "--sweeps", "3", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "as undisturbed" in done.stdout, done.stdout + done.stderr


def test_the_kinds_of_misfortune_are_many():
    listed = subprocess.run([sys.executable, SOAK, "--list"], capture_output=True, text=True, check=True).stdout
    assert len(set(listed.splitlines())) == len(listed.splitlines()) >= 20
