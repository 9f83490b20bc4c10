import math
from dataclasses import replace
from pathlib import Path

import pytest

from flgo_hydra.record.files import JsonLines, write_text
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.report.rows import Row
from flgo_hydra.report.summary import print_summary, rows_to_draw


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepPaths:
    monkeypatch.chdir(tmp_path)
    return SweepPaths(tmp_path / "multirun" / "a b")


def _completed(paths: SweepPaths, job: int, losses: list[float], overrides: tuple[str, ...] | None = None) -> Row:
    run = paths.run(job)
    run.folder.mkdir(parents=True)
    for round_num, loss in enumerate(losses):
        JsonLines(run.rounds).append({"round": round_num, "valid_loss": loss, "test_accuracy": 0.5})
    best = min(losses)
    metrics = {"valid_loss": best, "test_accuracy": 0.5}
    names = (f"lr=0.{job}",) if overrides is None else overrides
    return Row(job, names, run.folder, "completed", best, losses.index(best), len(losses) - 1, metrics)


def _failed(paths: SweepPaths, job: int, *logs: str) -> Row:
    for log in logs:
        write_text(paths.run(job).folder / log, "")
    return Row(job, (f"lr=0.{job}",), paths.run(job).folder, "failed", message="ValueError: too\nlong")


def _print(paths: SweepPaths, rows: list[Row], **changed: object) -> Row | None:
    arguments = {"storage": str(paths.study), "study_name": "s", "num_left": 0}
    return print_summary(rows, paths, **{**arguments, "curve": "valid_loss", **changed})  # type: ignore[arg-type]


def test_optimum_and_where_things_lie(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_completed(paths, 0, [2.0, 1.0, 1.5]), _completed(paths, 1, [2.0, 0.25, 0.5])]
    assert _print(paths, rows) is rows[1]
    out = capsys.readouterr().out
    assert out == (
        "\n"
        "optimal combination: lr=0.1\n"
        "best valid_loss:     0.25 at round 1 (job 1)\n"
        "at that round:       test_accuracy 0.5000\n"
        "\n"
        "  job  point   best valid_loss  round  of  status\n"
        "    1  lr=0.1         0.250000      1   2  completed\n"
        "    0  lr=0.0         1.000000      1   2  completed\n"
        "\n"
        "folder:  multirun/a b\n"
        "files:   results.csv, best.yaml, curves.png, <job>/rounds.jsonl\n"
        "resume:  python -m flgo_hydra.resume 'multirun/a b'\n"
        "report:  python -m flgo_hydra.report 'multirun/a b'\n"
        "study:   optuna best-trial --storage 'multirun/a b/study.journal' --study-name s\n"
        "         optuna-dashboard 'multirun/a b/study.journal'\n"
    )
    assert paths.curves.is_file()


@pytest.mark.parametrize(
    "logs, shown",
    [
        ([], "failure.json"),
        (["flgo_hydra.log"], "flgo_hydra.log"),
        (["attempt-1.log", "flgo_hydra.log"], "attempt-1.log"),
    ],
)
def test_failures_are_named_with_their_logs(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str], logs: list[str], shown: str
) -> None:
    _print(paths, [_completed(paths, 0, [1.0]), _failed(paths, 1, *logs)])
    out = capsys.readouterr().out
    assert f"failed: 1 of 2\n  job 1  lr=0.1  ValueError: too  multirun/a b/1/{shown}\n" in out


def test_many_failures_are_counted(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert _print(paths, [_failed(paths, job) for job in range(25)]) is None
    out = capsys.readouterr().out
    assert out.startswith("\nno point has a finite value\n")
    assert "failed: 25 of 25\n" in out and out.count("  job ") == 20
    assert "  … and 5 more in multirun/a b/results.csv\n" in out
    assert "files:   results.csv, <job>/rounds.jsonl\n" in out


def test_diverged_points_are_named(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    diverged = Row(1, ("lr=9",), paths.run(1).folder, "diverged", math.inf, 0, 1, message="not finite at round 1")
    _print(paths, [_completed(paths, 0, [1.0]), diverged])
    assert "diverged: 1 of 2\n  job 1  lr=9  not finite at round 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("num_left, line", [(0, None), (3, "not run: 3 points")])
def test_what_did_not_run_is_counted(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str], num_left: int, line: str | None
) -> None:
    _print(paths, [], num_left=num_left)
    out = capsys.readouterr().out
    assert ("not run" in out) == (line is not None) and (line or "") in out
    assert "optimal" not in out and not paths.curves.exists()


def test_how_to_go_on_and_how_to_try_failed_points_again(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_failed(paths, 0), _failed(paths, 1)]
    _print(paths, rows, num_untried=1)
    out = capsys.readouterr().out
    assert "  1 failed before and was not tried again; to try:\n" in out
    assert "  python -m flgo_hydra.resume 'multirun/a b' hydra.sweeper.retry_failed=true\n" in out
    _print(paths, rows, num_untried=0)
    assert "tried" not in capsys.readouterr().out
    _print(paths, rows, is_ours=False)
    assert "resume:  the same command with 'hydra.sweep.dir=multirun/a b'\n" in capsys.readouterr().out


def test_storage_by_url_and_a_folder_elsewhere(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = SweepPaths(tmp_path_factory.mktemp("elsewhere"))
    _print(elsewhere, [], storage="sqlite:///a.db", study_name="my study")
    out = capsys.readouterr().out
    assert "optuna best-trial --storage sqlite:///a.db --study-name 'my study'\n" in out
    assert f"folder:  {elsewhere.folder}\n" in out


def test_a_single_point(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    _print(paths, [_completed(paths, 0, [1.0], overrides=())])
    out = capsys.readouterr().out
    assert "optimal combination: (a single point)\n" in out and "  job  point" not in out


def test_a_value_without_rounds(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row.of_value(job, (f"x={job}",), RunPaths(paths.folder / str(job)), job + 1.0) for job in range(2)]
    _print(paths, rows)
    out = capsys.readouterr().out
    assert "best value:          1 (job 0)\n" in out and "    0  x=0           1.000000      -   -  completed\n" in out
    assert "curves.png" not in out


def test_a_metric_that_nobody_recorded(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    _print(paths, [_completed(paths, 0, [1.0])], curve="test_los")
    out = capsys.readouterr().out
    assert "no curves.png: no job recorded `test_los`; there are test_accuracy, valid_loss\n" in out


def test_a_pruned_point_is_named_and_not_the_best(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    pruned = Row(1, ("lr=9",), paths.run(1).folder, "pruned", 0.1, 3, 4, {}, 2.0, None, "pruned by median", 20)
    row = _completed(paths, 0, [1.0])
    assert _print(paths, [row, pruned]) is row
    assert "pruned: 1 of 2, saving 16 of their 20 rounds, about 8.0 s of training\n" in capsys.readouterr().out


def test_seeds_are_taken_together_at_the_end(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for job, (algorithm, seed) in enumerate((a, s) for a in ("fedavg", "fedprox") for s in range(3)):
        loss = 1.0 + seed / 10 + (0.01 + seed / 1000) * (algorithm == "fedprox")
        rows.append(_completed(paths, job, [loss], (f"algorithm={algorithm}", f"seed={seed}")))
    _print(paths, rows)
    out = capsys.readouterr().out
    assert (
        "over seed\n"
        "  algorithm  runs  best valid_loss     95 % interval\n"
        "  fedavg        3  1.1000 ± 0.1000  [0.8516, 1.3484]\n"
        "  fedprox       3  1.1110 ± 0.1010  [0.8601, 1.3619]\n"
    ) in out
    assert "  → fedavg has a lower best_valid_loss than fedprox by 0.0110 ± 0.0025 at equal settings" in out


def test_without_seeds_nothing_is_taken_together(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    _print(paths, [_completed(paths, job, [1.0], (f"lr=0.{job}", f"seed={job}")) for job in range(2)])
    assert "over seed" not in capsys.readouterr().out


def test_of_thousands_of_curves_the_best_and_some_others_are_drawn(tmp_path: Path) -> None:
    rows = [Row(job, (), tmp_path, "completed", best={"valid_loss": float(-job)}) for job in range(2000)]
    rows[1000] = Row(1000, (), tmp_path, "diverged", math.nan)
    jobs = [row.job for row in rows_to_draw(rows, rows[7])]  # of replicates the best one need not have the lowest value
    assert len(jobs) == 300 and jobs == sorted(jobs) and 7 in jobs
    assert set(range(1951, 2000)) <= set(jobs)
    assert 50 < len([job for job in jobs if job < 1000]) < 200
    assert rows_to_draw(rows[:300], rows[7]) == rows[:300]


def test_a_warning_is_printed_once_for_all_its_jobs(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_completed(paths, job, [0.5, 0.1 + job]) for job in range(4)]
    rows = [replace(row, warnings=["volume is counted twice"] if row.job % 2 else ()) for row in rows]
    rows[3] = replace(rows[3], warnings=[*rows[3].warnings, "it may diverge"])
    _print(paths, rows)
    out = capsys.readouterr().out
    assert out.count("warning: ") == 2
    assert "warning: volume is counted twice\n  2 of 4 jobs: 1, 3\n" in out
    assert "warning: it may diverge\n  1 of 4 jobs: 3\n" in out
