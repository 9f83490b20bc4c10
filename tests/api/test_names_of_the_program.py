"""Classes that a script or a notebook's cell defines are sent to the workers, also where a config names them."""

import subprocess
import sys

import pytest

PROGRAM = """
from flgo_hydra import sweep
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

small = ("num_rounds=1", "task.num_clients=2", "num_steps=1", "hydra.sweep.dir=sweep")
found = sweep("model=custom", "model._target_=__main__.Net", "lr=0.1,0.2", *small)
print([run.status for run in found])
found = sweep("model=custom", "model._target_=__main__.Missing", "lr=0.1,0.2", *small[:-1], "hydra.sweep.dir=other")
"""


@pytest.mark.parametrize("way", ["script", pytest.param("pipe", marks=pytest.mark.slow)])
def test_a_class_of_the_program(tmp_path, way):
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = ["program.py"] if way == "script" else ["-"]
    done = subprocess.run(
        [sys.executable, *arguments], input=PROGRAM, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert "['completed', 'completed']" in done.stdout, done.stdout + done.stderr
    assert "`model._target_=__main__.Missing`: the module .__main__. has no .Missing." in done.stderr.replace("'", ".")
