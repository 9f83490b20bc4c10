"""Run folders as jobs leave them, written by the record's own functions."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flgo_hydra.objective import Objective
from flgo_hydra.record.files import JsonLines
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import Failure, RunResult, write_failure, write_result
from flgo_hydra.report import figure

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures() -> Iterator[None]:
    """Pictures of a ninth of the dots take half the time to draw, and have the same in them."""
    before, figure.DPI = figure.DPI, 70
    yield
    figure.DPI = before


@pytest.fixture
def make_run(tmp_path: Path, run_maker: Callable[[Path], MakeRun]) -> MakeRun:
    return run_maker(tmp_path)


@pytest.fixture(scope="session")
def run_maker() -> Callable[[Path], MakeRun]:
    return _run_maker


def _run_maker(root: Path) -> MakeRun:
    """`make_run("sweep/0", [2.0, 1.0], lr=0.1, algorithm="fedavg", status="completed")`: losses from round 0 on.

    Without a status the run has no result: it is unfinished, or `failure` says why it ended. Its test_accuracy falls
    with the loss, or is what `accuracies` says; the best round is the monitor's.
    """

    def make(
        folder: str,
        losses: list[float],
        status: str | None = "completed",
        failure: str | None = None,
        config: dict[str, Any] | None = None,
        accuracies: list[float] | None = None,
        data: str = "",
        code: dict[str, str] | None = None,
        monitor: str = "valid_loss",
        **overrides: Any,
    ) -> Path:
        paths = RunPaths(root / folder)
        hydra = paths.folder / ".hydra"
        hydra.mkdir(parents=True)
        chosen = {"algorithm": "fedavg", "lr": 0.1, "seed": 0, "num_rounds": 5, **overrides}
        algorithm = {"name": chosen.pop("algorithm"), "_target_": "somewhere.Class"}
        for key in [key for key in chosen if key.startswith("algorithm.")]:
            algorithm[key.partition(".")[2]] = chosen.pop(key)
        task = {"name": chosen.pop("task", "digits"), "partition": {"name": "iid"}, "seed": chosen.pop("task.seed", 0)}
        if "task.partition.alpha" in chosen:
            task["partition"] = {"name": "dirichlet", "alpha": chosen.pop("task.partition.alpha")}
        hidden = [int(width) for width in str(chosen.pop("model.hidden", "[200]")).strip("[]").split(",")]
        option = {**chosen, "device": "auto", **(config or {})}
        parts = {"task": task, "model": {"name": "mlp", "hidden": hidden}, "algorithm": algorithm}
        OmegaConf.save(
            OmegaConf.create([f"{key}={value}" for key, value in overrides.items()]), hydra / "overrides.yaml"
        )
        OmegaConf.save(OmegaConf.create({**option, **parts}), hydra / "config.yaml")
        lines = []
        for num, loss in enumerate(losses):
            accuracy = 1 / (1 + loss) if accuracies is None else accuracies[num]
            lines.append({"valid_loss": loss, "test_loss": loss + 0.5, "test_accuracy": accuracy})
            JsonLines(paths.rounds).append({"round": num, **lines[-1], "seconds": num / 10})
        if failure is not None:
            kind, _, message = failure.partition(": ")
            write_failure(paths, Failure(kind, message))
        elif status is not None:
            followed = Objective.asked(monitor)
            finite = [num for num, loss in enumerate(losses) if math.isfinite(loss)]
            best_round = min(finite, key=lambda num: followed.rank(followed.of(lines[num])), default=0)
            at_best = lines[best_round] if finite else dict.fromkeys(lines[0], math.inf)
            result = RunResult(
                status=status,
                best_valid_loss=min((losses[num] for num in finite), default=math.inf),
                best_round=best_round,
                last_round=len(losses) - 1,
                best=at_best,
                last=at_best,
                seconds=1.5,
                peak_memory_mib=200.0,
                device="cpu",
                seed=chosen["seed"],
                option=option,
                versions={},
                fingerprint=str(hash(str((option, parts)))),
                message="the loss is not finite" if status == "diverged" else "",
                data_sha256=data,
                code={"sha256": "".join(code.values()), "files": code} if code else {},
                monitor=followed,
                **parts,
            )
            write_result(paths, result)
        return paths.folder

    return make


@pytest.fixture
def sweep(make_run: MakeRun, make_sweep: Callable[[MakeRun], None], tmp_path: Path) -> Path:
    """Of `make_sweep`."""
    make_sweep(make_run)
    return tmp_path / "sweep"


@pytest.fixture(scope="session")
def make_sweep() -> Callable[[MakeRun], None]:
    return _make_sweep


def _make_sweep(make_run: MakeRun) -> None:
    """Two algorithms, two rates, three seeds: fedprox is lower by 0.1 at lr=0.1 in each seed, equal at lr=0.01."""
    noise = [0.0, 0.2, 0.1]
    for i, (algorithm, lr, seed) in enumerate(
        (a, lr, s) for a in ("fedavg", "fedprox") for lr in (0.1, 0.01) for s in range(3)
    ):
        low = (1.0 if lr == 0.1 else 2.0) + noise[seed]
        if algorithm == "fedprox" and lr == 0.1:
            low -= 0.1 + 0.001 * seed
        make_run(f"sweep/{i}", [2.5, low + 0.1, low, low + 0.2], algorithm=algorithm, lr=lr, seed=seed)
