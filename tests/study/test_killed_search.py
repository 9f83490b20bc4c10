"""A search that is killed tries the points that it would have tried undisturbed: real processes, killed in a job."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.config.folder import conf_dir

APP = """
import json, os, signal, sys
import hydra
from flgo_hydra import compose

compose.prepare()


@hydra.main(**{**compose.hydra_main_arguments(), "config_path": os.path.abspath("conf")})
def app(cfg):
    told = os.path.join(cfg.log, "ran")
    ran = open(told).read().splitlines() if os.path.exists(told) else []
    mark = os.path.join(cfg.log, f"killed{len(ran)}")
    if str(len(ran)) in os.environ["KILLED"].split(",") and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)     # Hydra's basic launcher: the sweep itself
    with open(told, "a") as file:
        print(json.dumps([cfg.x, cfg.n]), file=file)
    if len(ran) == 4:
        raise OSError("one that fails")
    return (cfg.x - 0.3) ** 2 + (cfg.n - 2) ** 2


app()
"""
CONFIG = """
defaults:
  - override hydra/sweeper: flgo_hydra
  - override hydra/launcher: basic
  - _self_
x: 0.0
n: 2
log: ???
hydra: {{searchpath: [file://{conf}], sweep: {{dir: "${{log}}/sweep"}}}}
"""


@pytest.fixture
def search(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text(CONFIG.format(conf=conf_dir()))

    def run(sampler, *killed):
        folder = tmp_path / f"{sampler}{len(killed)}"
        folder.mkdir()
        command = [sys.executable, "app.py", "-m", "x=interval(-1,1)", "n=int(interval(0,4))", f"log={folder}"]
        command += [f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.n_trials=12"]
        environment = {**os.environ, "KILLED": ",".join(map(str, killed))}
        for status in [*(-signal.SIGKILL for _ in killed), 1]:
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
            assert done.returncode == status, done.stdout + done.stderr
        assert "one that fails" in done.stdout
        return [json.loads(line) for line in Path(folder, "ran").read_text().splitlines()]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_killed_search_tries_the_points_of_an_undisturbed_one(search, sampler):
    undisturbed = search(sampler)
    assert len(undisturbed) == 12 and len({x for x, _ in undisturbed}) == 12
    assert search(sampler, 0, 1, 3, 11) == undisturbed
