"""The wheel, unpacked elsewhere and run from another folder, does what the checkout does."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import flgo_hydra

ROOT = Path(__file__).parents[1]
ARGUMENTS = ("-m", "num_rounds=1", "model=logistic", "lr=0.1,0.01", "hydra.sweep.dir=sweep")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.strip().splitlines()[-1]


def test_conf_and_plugins_travel_with_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"flgo_hydra/{name}" for name in ours} <= set(names)
    assert "hydra_plugins/flgo_hydra/sweeper.py" in names
    assert "hydra_plugins/__init__.py" not in names  # it is everybody's
    assert not [name for name in names if name.startswith(("tests", "scripts", "conf/"))]
    entry_points = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "flgo-hydra = flgo_hydra.__main__:main" in entry_points


def test_it_runs_from_another_folder_as_the_checkout_does(wheel, tmp_path, command):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import flgo_hydra, sys; print(flgo_hydra.__file__); from flgo_hydra.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *ARGUMENTS],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert command(*ARGUMENTS).status == 0

    def numbers(folder: Path) -> list[str]:
        lines = [line for job in "01" for line in (folder / "sweep" / job / "rounds.jsonl").read_text().splitlines()]
        return [line.split('"seconds"')[0] for line in lines]

    assert numbers(elsewhere) == numbers(tmp_path)


def test_the_version_is_said_once():
    try:
        installed = importlib.metadata.version("flgo_hydra")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flgo_hydra is not installed here")
    assert installed == flgo_hydra.__version__


def test_the_journey_of_a_value_leads_through_what_is_there():
    down, up = (flgo_hydra.__doc__ or "").split("and of `valid_loss` back")
    hops = re.findall(r"^ +\d+ +(.+?)  ", down, re.M) + re.findall(r"`([a-z_]+\.[\w.]+)`", up)
    names = {name for hop in hops for name in hop.split(", ")} - {"state.last"}
    assert len(names) > 25
    for name in names:
        parts = name.split(".")
        modules = [
            n for n in range(1, len(parts) + 1) if ROOT.joinpath("flgo_hydra", *parts[:n]).with_suffix(".py").exists()
        ]
        found = importlib.import_module(".".join(["flgo_hydra", *parts[: modules[-1]]]))
        for part in parts[modules[-1] :]:
            found = getattr(found, part)
