"""What only a real GPU shows. Skipped without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.launch.scheduling.devices import Devices

ROOT = Path(__file__).parents[2]
DEVICES = Devices()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICES.is_cpu, reason=DEVICES.no_gpu or "no GPU")]
PROBE = """
import os
import torch

def visible(model):
    device = next(model.parameters()).device
    return {"is_cuda": float(device.type == "cuda"), "num_visible": float(torch.cuda.device_count())}

def greedy(model):
    if os.environ["FLGO_HYDRA_ATTEMPT"] == "1":
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    return {"attempt": float(os.environ["FLGO_HYDRA_ATTEMPT"])}
"""


def sweep(folder, *arguments):
    (folder / "probe.py").write_text(PROBE)
    grid = ["lr=0.1,0.01", "seed=0,1", "num_rounds=3", "device=cuda", "hydra.launcher.backoff_s=0.01"]
    done = subprocess.run(
        [sys.executable, "-m", "flgo_hydra", "-m", *grid, *arguments, "hydra.sweep.dir=sweep"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / "sweep" / str(i) / "result.json").read_text()) for i in range(4)]


def test_gpus_are_found_and_answer():
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in DEVICES.gpus)
    for device in DEVICES.read({}):
        assert device.total_mib > device.free_mib > 0
        assert device.foreign_mib == device.total_mib - device.free_mib


def test_a_mask_by_uuid_is_respected():
    uuid = DEVICES.gpus[-1].uuid
    masked = Devices(environ={"CUDA_VISIBLE_DEVICES": uuid})
    assert [gpu.uuid for gpu in masked.gpus] == [uuid]
    assert Devices(environ={"CUDA_VISIBLE_DEVICES": ""}).is_cpu


def test_jobs_see_one_gpu_and_report_its_memory(tmp_path):
    for result in sweep(tmp_path, "metrics=probe.visible", "hydra.launcher.fuse=off"):
        assert (result["best"]["is_cuda"], result["best"]["num_visible"]) == (1.0, 1.0)
        assert result["peak_memory_mib"] > 0
        assert result["device"] in DEVICES.name


def test_a_job_that_runs_out_of_memory_goes_again_and_succeeds(tmp_path):
    for i, result in enumerate(sweep(tmp_path, "metrics=probe.greedy", "hydra.launcher.fuse=off")):
        assert result["best"]["attempt"] == 2.0
        assert "out of memory" in (tmp_path / "sweep" / str(i) / "attempt-1.log").read_text().lower()


def test_runs_as_one_program_are_what_they_are_alone(tmp_path):
    alone, fused = tmp_path / "alone", tmp_path / "fused"
    alone.mkdir()
    fused.mkdir()
    pairs = zip(
        sweep(alone, "dtype=float64", "hydra.launcher.fuse=off"),
        sweep(fused, "dtype=float64", "hydra.launcher.fuse=4"),
        strict=True,
    )
    for one, other in pairs:
        assert other["engine"]["backend"] == "fused"
        assert other["best_valid_loss"] == pytest.approx(one["best_valid_loss"], rel=1e-12)
