"""A sweep that is killed goes on; `scripts/benchmarks/kills.py --points 108 --kills 8` is the long version."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_as_undisturbed():
    script = Path(__file__).parents[2] / "scripts" / "benchmarks" / "kills.py"
    command = [sys.executable, script, "--points", "6", "--kills", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "as undisturbed" in done.stdout, done.stdout + done.stderr
