import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.record.lock import holding
from flgo_hydra.record.result import _sum as sum_of
from flgo_hydra.report.command import main

_ROOT = Path(__file__).resolve().parents[2]

ACCURACY = "test_accuracy@best(valid_loss)"


@pytest.fixture
def report(capfd, monkeypatch, tmp_path):
    """`report("sweep", "--top", "1")` returns (status, stdout, stderr), run where the folders are."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_text_from_best_to_worst(report, sweep):
    status, out, err = report("sweep", "--top", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "12 runs: 12 completed"
    assert lines[1].split() == (
        "job algorithm lr seed status best valid_loss round of "
        "test_loss@best(valid_loss) test_accuracy@best(valid_loss) seconds MiB".split()
    )
    assert lines[2].split()[:7] == ["6", "fedprox", "0.1", "0", "completed", "0.9000", "2"]
    assert lines[4] == "  … and 10 more"
    (group,) = [line for line in lines if line.startswith("  fedprox") and "±" in line]
    assert "3  0.9990 ± 0.0995  [0.7518, 1.2462]" in group
    assert "  → fedprox has a lower best_valid_loss than fedavg by 0.0505 ± 0.0012 at equal settings" in out
    assert "each at its best setting" not in out and "With 4 replicates or more some choose" in out


def test_a_half_finished_sweep(report, make_run, tmp_path):
    make_run("sweep/0", [2.0, 1.0], lr=1)
    make_run("sweep/1", [2.0, 0.1], status=None, lr=2)
    make_run("sweep/2", [2.0, 0.2], status="pruned", lr=3)
    make_run("sweep/3", [2.0], failure="ValueError: too\nlong", lr=4)
    (tmp_path / "sweep" / "3" / "attempt-1.log").write_text("")
    make_run("sweep/4", [2.0, float("nan")], status="diverged", lr=5)
    with holding(tmp_path / "sweep" / ".owner.lock"):
        status, out, _ = report("sweep")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith("5 runs: 1 completed, 1 running, 1 pruned, 1 diverged, 1 failed\n")
    assert [line[0] for line in lines[2:7]] == ["0", "1", "2", "4", "3"]
    assert lines[3] == ["1", "2", "running", "(1", "of", "5)", "0.1000", "1", "1", "0.6000", "0.9091", "0.10", "-"]
    assert "failed: 1 of 5\n  job  lr  reason           log\n  3     4  ValueError: too  sweep/3/attempt-1.log\n" in out


def test_json_and_csv_say_the_same(report, sweep):
    _, out, _ = report("sweep", "--format", "json")
    read = json.loads(out)
    _, out, _ = report("sweep", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == len(read["points"]) == 12
    for row, point in zip(rows, read["points"], strict=True):
        assert float(row["best_valid_loss"]) == point["best_valid_loss"] and row["folder"] == point["folder"]
        assert (row["algorithm"], float(row["lr"]), int(row["seed"])) == (
            point["algorithm"],
            point["lr"],
            point["seed"],
        )
    assert read["groups"][0]["best_valid_loss_mean"] == pytest.approx(0.999)
    assert read["comparison"][0]["p_exact"] == 0.25 and len(read["conclusions"]) == 1
    _, out, _ = report("sweep", "--format", "csv", "--table", "comparison")
    assert out.startswith("first,second,under,where,difference,interval_95_low,interval_95_high,seeds,p,")
    assert "nan" not in out and "inf" not in out


def test_json_has_no_nan(report, make_run):
    make_run("s/0", [float("nan")], status="diverged")
    status, out, _ = report("s", "--format", "json")
    assert status == 0 and json.loads(out)["points"][0]["best_valid_loss"] is None
    _, out, _ = report("s", "--format", "csv")
    assert next(csv.DictReader(io.StringIO(out)))["best_valid_loss"] == "inf"


def test_markdown_and_latex(report, make_run):
    make_run("s/0", [1.0], algorithm="a|b_c")
    make_run("s/1", [2.0], algorithm="d")
    _, out, _ = report("s", "--format", "md", "--table", "points")
    assert out.splitlines()[4].startswith("| **0** | **a\\|b_c** | **completed** | **1.0000** |")
    assert out.splitlines()[5].startswith("| 1 | d | completed | 2.0000 |")
    _, out, _ = report("s", "--format", "latex", "--table", "points")
    assert "\\begin{tabular}{lllrrrrrrr}\n\\toprule\njob & algorithm & status & best valid\\_loss &" in out
    assert "\\textbf{a|b\\_c}" in out and out.rstrip().endswith("\\end{tabular}")


def test_metric_direction_keys_and_filter(report, sweep):
    _, out, _ = report("sweep", "--metric", "test_accuracy", "--format", "csv", "--key", "lr", "--where", "seed=0,1")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 8 and "algorithm" not in rows[0] and list(rows[0])[:4] == ["job", "lr", "status", ACCURACY]
    accuracies = [float(row[ACCURACY]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    _, out, _ = report("sweep", "--select", "test_accuracy", "--minimize", "--format", "csv")
    assert float(next(csv.DictReader(io.StringIO(out)))[ACCURACY]) == min(accuracies + [1 / 3.2])
    _, out, _ = report("sweep", "--where", "lr=1e-1", "--where", "algorithm=FedProx", "--format", "csv")
    assert len(out.splitlines()) == 4
    _, out, _ = report("--where", "status=completed", "--top", "1", "sweep", "--table", "points")
    assert out.startswith("12 runs")


def test_a_list_is_one_value(report, make_run):
    for i, hidden in enumerate(["[200, 100]", "[50]"]):
        make_run(f"s/{i}", [1.0], **{"model.hidden": hidden})
    for text in ("[200,100]", "[200, 100]"):
        _, out, _ = report("s", "--where", f"model.hidden={text}", "--format", "csv")
        assert len(out.splitlines()) == 2
    _, out, _ = report("s", "--format", "md")
    assert "| [200, 100] |" in out  # a condition with a single run has no best one


def test_a_damaged_run_is_named_and_left_out(report, make_run):
    for seed in range(3):
        make_run(f"s/{seed}", [9.0, 1.0 + seed], seed=seed)
    path = make_run("s/3", [2.0, 0.5], seed=3) / "result.json"
    path.write_text(path.read_text().replace("0.5", "0.1"))
    status, out, _ = report("s")
    assert status == 0 and out.startswith("4 runs: 3 completed, 1 damaged\n")
    assert "damaged: 1 of 4" in out and "result.json has been changed since it was written" in out
    _, out, _ = report("s", "--table", "groups", "--format", "json")
    (group,) = json.loads(out)["groups"]
    assert group["runs"] == 3 and group["best_valid_loss_mean"] == 2.0 and group["left_out"] == "1 damaged"


def test_a_users_own_metric_has_no_way_that_is_better(report, make_run):
    folder = make_run("s", [1.0])
    result = json.loads((folder / "result.json").read_text())
    del result["sha256"]
    result["best"] |= {"fairness": 0.5}
    (folder / "result.json").write_text(json.dumps({**result, "sha256": sum_of(result)}))
    _, out, _ = report("s", "--metric", "fairness", "--maximize", "--format", "json")
    (point,) = json.loads(out)["points"]
    assert point["fairness@best(valid_loss)"] == 0.5
    # Of a user's own metric that no run followed nobody knows which way it is better.
    status, _, err = report("s", "--metric", "fairness")
    assert status == 1 and "say which way it is better, `--maximize` or `--minimize`" in err


def test_replicates_of_two_keys(report, make_run):
    for i, (seed, split) in enumerate((s, t) for s in range(2) for t in range(2)):
        make_run(f"s/{i}", [1.0 + seed + split], seed=seed, **{"task.seed": split})
    _, out, _ = report("s", "--format", "json", "--over", "seed,task.seed")
    (group,) = json.loads(out)["groups"]
    assert (group["runs"], group["best_valid_loss_mean"]) == (4, 2.0)
    _, out, _ = report("s", "--format", "json")
    assert len(json.loads(out)["groups"]) == 2


def test_nothing_has_ended_yet(report, make_run):
    for seed in range(2):
        make_run(f"s/{seed}", [2.0], status=None, seed=seed)
    status, out, _ = report("s")
    assert status == 0 and out.startswith("2 runs: 2 running") and "over seed" not in out and "compared" not in out


def test_a_single_run(report, make_run):
    make_run("single", [2.0, 1.0])
    status, out, _ = report("single")
    assert status == 0 and out.startswith("1 run: 1 completed\n  job     status") and "over seed" not in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere"], "There is no folder nowhere."),
        (["sweep", "lr=0.1"], "To choose runs by their config: `--where lr=0.1`."),
        (["sweep", "--metric", "test_acuracy"], "Did you mean `test_accuracy`?"),
        (["sweep", "--metric", "zzz"], "There are `best_valid_loss`, `test_loss`"),
        (["sweep", "--over", "sed"], "Did you mean `seed`"),
        (["sweep", "--key", "learning_rate"], "Did you mean `lr`?"),
        (["sweep", "--key", "zzz"], "Those that vary are `algorithm`, `lr`, `seed`."),
        (["sweep", "--where", "lr"], "must be `key=value`"),
        (["sweep", "--where", "lr=3"], "`lr` is 0.01, 0.1."),
        (["sweep", "--where", "lrr=3"], "Did you mean `lr`?"),
        (["sweep", "--compare", "device"], "all runs have the same. What varies: `algorithm`, `lr`, `seed`."),
        (["sweep", "--compare", "seed"], "cannot also be what the means are over"),
        (["sweep", "--over", "algorithm", "--table", "comparison"], "Choose a key with `--compare`."),
        (["sweep", "--where", "seed=0", "--table", "groups"], "no two runs differ in seed alone"),
    ],
)
def test_mistakes_are_answered(report, sweep, arguments, said):
    status, out, err = report(*arguments)
    assert status == 1 and out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "required: folder"),
        (["sweep", "--fromat", "csv"], "Did you mean `--format`?"),
        (["sweep", "--format", "xml"], "invalid choice: 'xml'"),
        (["sweep", "--top", "0"], "must be a whole number of at least 1, but got '0'"),
        (["sweep", "--maximize", "--minimize"], "not allowed with"),
    ],
)
def test_wrong_options(report, sweep, arguments, said):
    status, out, err = report(*arguments)
    assert status == 2 and out == "" and said in err and "--help` shows what there is." in err


def _run(*arguments, cwd, **changed):
    environment = {"PYTHONPATH": str(_ROOT), "PATH": os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, text=True, capture_output=True, **changed
    )


def test_as_a_module_and_as_a_script(sweep, tmp_path):
    by_module = _run("-m", "flgo_hydra.report", "sweep", cwd=tmp_path)
    assert by_module.returncode == 0 and by_module.stdout.startswith("12 runs")
    assert _run(_ROOT / "scripts" / "report", "sweep", cwd=tmp_path).stdout == by_module.stdout
    assert _run("-m", "flgo_hydra.report", "nowhere", cwd=tmp_path).returncode == 1


def test_tables_import_no_matplotlib_no_torch(sweep, tmp_path):
    code = "import sys; from flgo_hydra.report.command import main; main(['sweep']); print(sorted(sys.modules))"
    out = _run("-c", code, cwd=tmp_path).stdout
    assert out.startswith("12 runs")
    for package in ("matplotlib", "torch", "optuna", "hydra"):
        assert f"'{package}'" not in out


def test_a_reader_that_has_seen_enough(sweep, tmp_path):
    command = f"{sys.executable} -m flgo_hydra.report sweep sweep | head -1"
    environment = {"PYTHONPATH": str(_ROOT), "PATH": os.environ["PATH"]}
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("12 runs: 12 completed\n", "")


def test_a_real_sweep_and_readmes_commands_on_it(command, report, empty_folder):
    grid = ["algorithm=fedavg,fedprox", "lr=0.1,0.05", "seed=0,1", "num_rounds=1", "model=logistic"]
    done = command("-m", *grid, "hydra.sweep.dir=sweep")
    assert done.status == 0, done.err
    status, out, err = report("sweep", "--format", "json")
    assert (status, err) == (0, "")
    read = json.loads(out)
    with open("sweep/results.csv", newline="") as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert len(read["points"]) == 8
    for point in read["points"]:
        row = rows[point["job"]]
        assert float(row["best_valid_loss"]) == point["best_valid_loss"]
        assert float(row[ACCURACY]) == point[ACCURACY] and row["algorithm"] == point["algorithm"]
    assert [group["runs"] for group in read["groups"]] == [2] * 4 and len(read["comparison"]) == 2
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m flgo_hydra\.report (.*)$", readme, flags=re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        status, out, err = report(*shlex.split(line))
        assert (status, err) == (0, "") and out, line
    assert (empty_folder / "test_loss.pdf").is_file() and (empty_folder / "sweep.html").is_file()


def test_pictures_and_their_paths(report, sweep, tmp_path):
    status, out, err = report(
        "sweep", "--table", "points", "--plot", "test_loss", "--by", "algorithm", "--heatmap", "lr,algorithm"
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == [
        "picture: sweep/test_loss_by_algorithm.png",
        "picture: sweep/heatmap_lr_algorithm.png",
    ]
    assert (sweep / "test_loss_by_algorithm.png").is_file() and (sweep / "heatmap_lr_algorithm.png").is_file()
    _, out, _ = report("sweep", "--parallel", "--out", "some/figure.pdf")
    assert out.splitlines()[-1] == "picture: some/figure.pdf" and (tmp_path / "some" / "figure.pdf").is_file()
    _, out, err = report(
        "sweep", "--format", "json", "--plot", "test_accuracy", "--by", "task/partition", "--out", "here"
    )
    assert json.loads(out) and err == "picture: here/test_accuracy_by_task-partition.png\n"
    report("sweep", "sweep/0", "--parallel")
    assert (tmp_path / "parallel.png").is_file()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--plot", "test_los"], "Did you mean `test_loss`?"),
        (["--plot", "test_loss", "--by", "algoritm"], "Did you mean `algorithm`?"),
        (["--plot", "test_loss", "--by", "seed"], "choose another `--over`"),
        (["--heatmap", "lr"], "must be two keys"),
        (["--heatmap", "lr,lr"], "must be two keys"),
        (["--heatmap", "lr,num_rounds"], "all runs have the same num_rounds. What varies: `algorithm`, `lr`, `seed`."),
        (["--heatmap", "lr,algorithmm"], "Did you mean `algorithm`?"),
        (["--parallel", "--where", "seed=0", "--where", "lr=0.1", "--where", "algorithm=fedavg"], "Nothing varies."),
        (["--by", "lr"], "Add `--plot test_loss`."),
        (["--out", "x"], "Add `--plot test_loss`."),
        (["--parallel", "--plot", "test_loss", "--out", "x.png"], "one file for several pictures"),
        (["--parallel", "--out", "x.jpeg"], "must be a folder or end in .png, .pdf, .svg"),
        (["--parallel", "--out", "sweep/0/result.json/x"], "cannot be written: Not a directory"),
        (["--html", "sweep"], "is a folder. Give a file: `--html sweep/report.html`"),
    ],
)
def test_pictures_that_cannot_be(report, sweep, arguments, said):
    status, out, err = report("sweep", *arguments)
    assert (out == "") != ("written" in said)  # a mistake is found before anything is printed
    assert status == 1 and err.startswith("error: ") and said in err and err.count("\n") == 1
