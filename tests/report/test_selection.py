"""What chooses the best is what the runs followed, whatever is shown; under each condition by itself."""

import csv
import io
import itertools
import json
import re

import pytest

from flgo_hydra.objective import Objective
from flgo_hydra.report.command import main
from flgo_hydra.report.selection import Selection


@pytest.fixture
def report(capfd, monkeypatch, tmp_path):
    """`report("s", "--top", "1")` returns stdout and stderr, run where the folders are."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        assert main([str(argument) for argument in arguments]) == status
        out, err = capfd.readouterr()
        return out + err

    return run


@pytest.fixture
def rates(make_run):
    """Two rates, four seeds, two methods: by valid_loss lr=0.1 is best, by test_accuracy lr=0.5 is."""
    for i, (algorithm, lr, seed) in enumerate(itertools.product(("fedavg", "fedprox"), (0.1, 0.5), range(4))):
        accuracy = (0.6 if lr == 0.1 else 0.9) + 0.01 * seed + 0.05 * (algorithm == "fedprox")
        loss = (1.0 if lr == 0.1 else 2.0) + 0.1 * seed
        make_run(f"s/{i}", [3.0, loss], algorithm=algorithm, lr=lr, seed=seed, accuracies=[0.1, accuracy])


_BY_VALID = "chosen by best_valid_loss, which the runs followed, on validation samples"
_BY_TEST = "chosen by test_accuracy@best(valid_loss), as asked for, on test samples"


@pytest.mark.parametrize("form", ["text", "md", "latex"])
def test_the_metric_shown_chooses_nothing(report, rates, form):
    out = report("s", "--metric", "test_accuracy", "--table", "comparison", "--format", form)
    assert "each at its best: lr=0.1" in out and "lr=0.5" not in out
    assert (_BY_VALID if form != "latex" else "chosen by best_valid_loss") in out
    out = report("s", "--metric", "test_accuracy", "--select", "test_accuracy", "--format", form)
    assert "each at its best: lr=0.5" in out and "lr=0.1" not in out.partition(" compared")[2]
    # Every table says that its best rows were chosen on test samples.
    assert out.count("on test samples") == 3


def test_csv_and_json_say_what_chose(report, rates):
    for table in ("points", "groups", "comparison"):
        rows = list(csv.DictReader(io.StringIO(report("s", "--format", "csv", "--table", table))))
        assert {row["chosen_by"] for row in rows} == {"best_valid_loss"}
        out = report("s", "--format", "csv", "--table", table, "--select", "test_accuracy")
        chosen_by = {row["chosen_by"] for row in csv.DictReader(io.StringIO(out))}
        assert chosen_by == {"test_accuracy@best(valid_loss) (test samples)"}
    read = json.loads(report("s", "--format", "json", "--metric", "test_accuracy"))
    assert read["metric"] == "test_accuracy@best(valid_loss)" and read["mode"] == "max"
    assert read["selection"] == {
        "metric": "best_valid_loss",
        "mode": "min",
        "samples": "validation",
        "is_asked": False,
        "notes": [f"the best are {_BY_VALID}"],
    }
    assert [point["lr"] for point in read["points"][:8]] == [0.1] * 8  # in the order of what chooses
    assert read["groups"][0]["lr"] == 0.1 and read["comparison"][1]["where"].startswith("each at its best: lr=0.1")


@pytest.mark.parametrize("asked, said", [([], "by best_valid_loss"), (["--select", "test_accuracy"], "(test samples)")])
def test_pictures_say_what_chose(report, rates, tmp_path, asked, said):
    lr = "0.5" if asked else "0.1"
    report("s", "--metric", "test_accuracy", *asked, "--plot", "test_accuracy", "--out", "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert f"fedavg lr={lr}" in text and f"fedprox lr={lr}" in text
    assert "each at its best lr by" in text and said in text
    for picture, option in (("b.svg", ["--heatmap", "lr,algorithm"]), ("c.svg", ["--parallel"])):
        report("s", "--metric", "test_accuracy", *asked, *option, "--out", picture)
        assert said in (tmp_path / picture).read_text()
    report("s", "--metric", "test_accuracy", *asked, "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == 5 and all(said in caption for caption in captions)
    assert (_BY_TEST if asked else _BY_VALID) in page


def test_a_test_metric_that_the_runs_followed_is_told(report, make_run):
    for i, (lr, seed) in enumerate(itertools.product((0.1, 0.5), range(2))):
        make_run(f"s/{i}", [3.0, 1.0, 2.0], accuracies=[0.1, 0.5, 0.9 - lr], monitor="test_accuracy", lr=lr, seed=seed)
    out = report("s")
    assert "test_accuracy@best(test_accuracy)  round" in out  # what they followed is what is shown
    assert out.count("chosen by test_accuracy@best(test_accuracy), which the runs followed, on test samples") == 2
    # Chosen by another metric, the rounds were still chosen on test samples.
    out = report("s", "--select", "best_valid_loss", "--metric", "test_loss")
    assert "each run's best round is chosen by test_accuracy, on test samples" in out


@pytest.mark.parametrize(
    "monitor, options, told",
    [
        ("valid_loss", ["--maximize"], "of best_valid_loss, but the runs followed `monitor=valid_loss` (min): less of"),
        ("valid_loss", ["--maximize", "--metric", "best_valid_loss"], "`monitor=valid_loss` (min)"),
        ("valid_loss", ["--maximize", "--metric", "valid_loss"], "`monitor=valid_loss` (min)"),
        ("valid_loss", ["--maximize", "--select", "valid_loss"], "`monitor=valid_loss` (min)"),
        ("valid_loss", ["--maximize", "--select", "valid_loss", "--metric", "test_loss"], "`monitor=valid_loss` (min)"),
        ("valid_loss", ["--maximize", "--select", "test_accuracy", "--metric", "best_valid_loss"], "(min)"),
        ("test_accuracy", ["--minimize"], "`monitor=test_accuracy` (max): more of it is better"),
        ("test_accuracy", ["--minimize", "--select", "test_accuracy"], "Drop `--minimize`, or name another metric"),
    ],
)
def test_the_runs_direction_is_not_turned(report, make_run, monitor, options, told):
    make_run("s/0", [2.0, 1.0], lr=0.1, monitor=monitor)
    make_run("s/1", [2.0, 1.5], lr=0.2, monitor=monitor)
    out = report("s", *options, status=1)
    assert told in out and out.startswith(f"error: `{options[0]}` would be of ") and out.count("\n") == 1


@pytest.mark.parametrize(
    "monitor, options, lr, mode",
    [
        ("valid_loss", ["--minimize"], 0.1, "min"),  # as it is
        ("test_accuracy", ["--maximize"], 0.1, "max"),
        ("valid_loss", ["--metric", "test_loss", "--maximize"], 0.1, "max"),  # what is shown chooses nothing
        ("test_accuracy", ["--metric", "test_loss", "--minimize"], 0.1, "min"),
        ("valid_loss", ["--select", "test_loss", "--maximize"], 0.2, "max"),
        ("valid_loss", ["--select", "test_accuracy", "--minimize"], 0.2, "min"),
        ("test_accuracy", ["--select", "test_loss", "--maximize"], 0.2, "max"),
        ("test_accuracy", ["--select", "best_valid_loss", "--metric", "test_loss", "--minimize"], 0.1, "min"),
    ],
)
def test_a_direction_is_of_the_metrics_that_are_named(report, make_run, monitor, options, lr, mode):
    make_run("s/0", [2.0, 1.0], lr=0.1, monitor=monitor)
    make_run("s/1", [2.0, 1.5], lr=0.2, monitor=monitor)
    read = json.loads(report("s", *options, "--format", "json"))
    assert (read["points"][0]["lr"], read["mode"]) == (lr, mode)


def test_runs_that_followed_different_metrics_are_not_ranked(report, make_run):
    make_run("s/0", [2.0, 1.0], lr=0.1)
    make_run("s/1", [2.0, 1.0], lr=0.2, monitor="test_accuracy")
    out = report("s", status=1)
    assert "`monitor=valid_loss` (min) and `monitor=test_accuracy` (max)" in out
    assert "`--select best_valid_loss`" in out
    assert "chosen by best_valid_loss, as asked for" in report(
        "s", "--select", "best_valid_loss", "--metric", "seconds"
    )
    # `test_loss` is of two kinds here: at the rounds that the loss chose, and at those that the accuracy chose.
    for metric, status in (("test_loss", 1), ("test_loss@best(valid_loss)", 0)):
        out = report("s", "--select", "best_valid_loss", "--metric", metric, status=status)
        assert "test_loss@best(valid_loss)" in out and "test_loss@best(test_accuracy)" in out


def test_mistyped_selections_are_answered(report, rates):
    assert "Did you mean `test_accuracy`?" in report("s", "--select", "test_acuracy", status=1)


@pytest.fixture
def skews(make_run):
    """Two methods, two rates, four seeds under three skews: alpha=9 is easiest; at alpha=1 lr=0.5 is best, else 0.1."""
    grid = itertools.product(("fedavg", "fedprox"), (0.1, 0.5), (0.1, 1, 9), range(4))
    for i, (algorithm, lr, alpha, seed) in enumerate(grid):
        loss = 5 - alpha / 2 + 0.1 * seed + ((lr == 0.1) == (alpha == 1)) * 0.3
        loss -= (0.2 + 0.01 * (seed % 2)) * (algorithm == "fedprox") * (alpha == 1)
        make_run(
            f"s/{i}", [9.0, loss], algorithm=algorithm, lr=lr, seed=seed, **{"task.partition.alpha": alpha}
        )  # fmt: skip


def test_conditions_are_compared_within_and_never_chosen_over(report, skews):
    read = json.loads(report("s", "--format", "json"))
    assert read["conditions"] == ["task.partition.alpha"]
    assert {(row["under"], row["where"].partition(",")[0]) for row in read["comparison"]} == {
        ("task.partition.alpha=0.1", "mean over 2 settings"),
        ("task.partition.alpha=1", "mean over 2 settings"),
        ("task.partition.alpha=9", "mean over 2 settings"),
        ("task.partition.alpha=0.1", "each at its best: lr=0.1"),
        ("task.partition.alpha=1", "each at its best: lr=0.5"),
        ("task.partition.alpha=9", "each at its best: lr=0.1"),
    }
    assert read["conclusions"] and all("with task.partition.alpha=1:" in text for text in read["conclusions"])
    best = [(group["task.partition.alpha"], group["lr"]) for group in read["groups"][::4]]
    assert best == [(0.1, 0.1), (1, 0.5), (9, 0.1)]


def test_each_condition_has_its_best_rows(report, skews):
    out = report("s", "--table", "groups", "--format", "md")
    assert len(re.findall(r"^\| \*\*", out, flags=re.MULTILINE)) == 3
    assert len(report("s", "--table", "points", "--format", "csv", "--top", "2").splitlines()) == 1 + 3 * 2


def test_pictures_keep_conditions_apart(report, skews, tmp_path):
    report("s", "--plot", "valid_loss", "--out", "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(f">task.partition.alpha={alpha}<" in text for alpha in (0.1, 1, 9))
    assert text.count("fedavg lr=0.1<") == 2 and text.count("fedavg lr=0.5<") == 1
    assert "each at its best lr by" in text and "best lr, task" not in text
    report("s", "--plot", "valid_loss", "--by", "task.partition.alpha", "--out", "b.svg")
    text = (tmp_path / "b.svg").read_text()
    assert "task.partition.alpha=9 algorithm=fedprox lr=0.1<" in text  # no method is chosen over either
    report("s", "--parallel", "--out", "c.svg")
    assert (tmp_path / "c.svg").read_text().count(">best: ") == 3


@pytest.mark.parametrize(
    "first, second, conditions",
    [
        ({"task": "digits"}, {"task": "mnist"}, ["task"]),
        ({"model.hidden": "[10]"}, {"model.hidden": "[20]"}, ["model.hidden"]),
        ({"task.seed": 0}, {"task.seed": 1}, ["task.seed"]),
        ({"proportion": 0.1}, {"proportion": 0.5}, []),
        ({"algorithm": "fedavg"}, {"algorithm": "fedprox"}, []),
    ],
)
def test_which_keys_are_conditions(report, make_run, first, second, conditions):
    make_run("s/0", [1.0], **first)
    make_run("s/1", [2.0], **second)
    read = json.loads(report("s", "--format", "json"))
    assert read["conditions"] == conditions


def test_the_reader_says_otherwise(report, skews):
    def conditions(*options):
        return json.loads(report("s", "--format", "json", *options))["conditions"]

    assert conditions("--conditions", "lr") == ["lr", "task.partition.alpha"]
    assert conditions("--settings", "task.partition") == conditions("--settings", "task.partition.alpha") == []
    assert conditions("--over", "seed,task.partition.alpha") == []
    assert conditions("--conditions", "algorithm") == ["algorithm", "task.partition.alpha"]
    read = json.loads(report("s", "--format", "json", "--settings", "task.partition.alpha"))
    assert read["comparison"][-1]["where"].startswith("each at its best: lr=0.1 task.partition.alpha=9")


@pytest.mark.parametrize(
    "options, said",
    [
        (["--conditions", "lrr"], "Did you mean `lr`?"),
        (["--conditions", "num_rounds"], "`--conditions num_rounds`: all runs have the same. What varies: `algorithm`"),
        (["--settings", "seed"], "`--settings seed` is compared, or what the means are over"),
        (["--compare", "lr", "--conditions", "lr"], "`--conditions lr` is compared"),
        (["--settings", "lr", "--conditions", "lr"], "cannot be of `--conditions` and of `--settings`"),
    ],
)
def test_parts_that_a_key_cannot_have(report, skews, options, said):
    assert said in report("s", *options, status=1)


def test_parameters_may_be_settings(report, make_run):
    for i, (mu, seed) in enumerate(itertools.product((None, 0.1, 1), range(4))):
        own = {} if mu is None else {"algorithm.mu": mu}
        name = "fedavg" if mu is None else "fedprox"
        make_run(f"s/{i}", [3.0, 1.0 + (mu or 0) + 0.1 * seed], algorithm=name, seed=seed, **own)
    read = json.loads(report("s", "--format", "json"))
    assert {row["second"] for row in read["comparison"]} == {"fedprox algorithm.mu=0.1", "fedprox algorithm.mu=1"}
    (row,) = json.loads(report("s", "--format", "json", "--settings", "algorithm.mu"))["comparison"]
    assert (row["second"], row["seeds"]) == ("fedprox", 3)
    assert row["where"] == "each at its best: - / algorithm.mu=0.1, chosen on seed 0"


def test_seeds_of_one_split_are_not_counted_apart(report, make_run):
    """fedprox is lower in each of the runs of one split and higher in those of the other: noise of two splits."""
    grid = itertools.product(("fedavg", "fedprox"), range(2), range(8))
    for i, (algorithm, split, seed) in enumerate(grid):
        gap = (0.5 if split else 0.3) * (algorithm == "fedprox")
        loss = 2 + 0.1 * split - gap + 0.001 * (seed % 3) * (algorithm == "fedprox")
        make_run(f"s/{i}", [9.0, loss], algorithm=algorithm, seed=seed, **{"task.seed": split})
    out = report("s", "--over", "seed,task.seed")
    assert "two seeds: too few to tell" in out and ": larger than seed noise" not in out
    assert "seed, task.seed are crossed" in out
    read = json.loads(report("s", "--over", "task.seed,seed", "--format", "json"))
    (row,) = read["comparison"]
    assert row["seeds"] == 2 and row["difference"] == pytest.approx(0.399, abs=1e-3)
    # The interval of a mean knows it too: 16 runs of two splits.
    assert read["groups"][0]["runs"] == 16
    assert read["groups"][0]["interval_95_high"] - read["groups"][0]["interval_95_low"] > 0.5


def test_other_data_under_the_same_config_are_kept_apart(report, make_run, tmp_path):
    """Somebody changed the data file between seeds 1 and 2: no mean, line or comparison is over both."""
    for i, (algorithm, seed) in enumerate(itertools.product(("fedavg", "fedprox"), range(4))):
        data = "old" if seed < 2 else "new"
        loss = (1.0 if data == "old" else 3.0) + seed / 10
        make_run(f"s/{i}", [4.0, loss], algorithm=algorithm, seed=seed, data=data)
    make_run("s/8", [4.0], failure="Error: x", algorithm="fedavg", seed=9)  # of which nobody knows the data
    out = report("s")
    assert "Runs of the same task have other data: 4 of old, 4 of new" in " ".join(out.replace("1 of -", "").split())
    read = json.loads(report("s", "--format", "json"))
    assert read["conditions"] == ["data_sha256"]
    means = {(group["data_sha256"], group["best_valid_loss_mean"]) for group in read["groups"] if group["runs"]}
    assert means == {("old", 1.05), ("new", 3.25)}
    assert {row["under"] for row in read["comparison"]} == {"data_sha256=old", "data_sha256=new"}
    report("s", "--plot", "valid_loss", "--where", "status=completed", "--out", "a.svg")
    assert (tmp_path / "a.svg").read_text().count(">data_sha256=") == 2
    report("s", "--heatmap", "seed,algorithm", "--where", "status=completed", "--out", "b.svg")
    assert (tmp_path / "b.svg").read_text().count(">data_sha256=") == 2
    assert json.loads(report("s", "--where", "data_sha256=old", "--format", "json"))["conditions"] == []
    for option in ("--settings", "--over", "--compare"):
        assert "`data_sha256` can only be a condition" in report("s", option, "data_sha256", status=1)


def test_data_that_the_config_explains_are_no_condition(report, make_run):
    for i, (split, seed) in enumerate(itertools.product(range(3), range(2))):
        make_run(f"s/{i}", [4.0, 1.0 + split + seed / 9], seed=seed, data=f"d{split}", **{"task.seed": split})
    read = json.loads(report("s", "--format", "json", "--over", "seed,task.seed"))
    assert read["conditions"] == [] and len(read["groups"]) == 1 and read["remarks"] == []
    assert json.loads(report("s", "--format", "json"))["conditions"] == ["task.seed"]


def test_repeats_are_of_the_same_data_and_code(report, make_run, tmp_path):
    make_run("a/0", [1.0], lr=0.1, data="old", code={"my.py": "v1"})
    make_run("b/0", [1.0], lr=0.1, data="old", code={"my.py": "v1"})
    make_run("c/0", [2.0], lr=0.1, data="new", code={"my.py": "v1"})
    make_run("d/0", [3.0], lr=0.1, data="old", code={"my.py": "v2"})
    read = json.loads(report("a", "b", "c", "d", "--format", "json"))
    assert {point["job"] for point in read["points"]} == {"a/0", "d/0", "c/0"}
    assert sorted(read["conditions"]) == ["code", "data_sha256"]
    assert read["remarks"][0] == "1 of 4 runs repeat another one with the same config: left out."
    assert read["remarks"][2] == "Runs are of 2 versions of my.py: 2 of v1, 1 of v2."


def test_points_of_a_sweep_are_no_repeats(report, make_run):
    """Two folders of data have one fingerprint: they are two points of the sweep. A copy of a run is none."""
    for i in range(2):
        make_run(f"s/{i}", [1.0], lr=0.1, **{"task.data_dir": f"d{i}"})
    assert report("s").startswith("2 runs: 2 completed")
    make_run("s/2", [1.0], lr=0.1, **{"task.data_dir": "d1"})
    told = report("s")
    assert told.startswith("2 runs: 2 completed") and "1 of 3 runs repeat another one" in told


def test_versions_of_code_are_told_and_the_seeds_of_both_are_not_hidden(report, make_run):
    for seed in range(4):
        make_run(f"s/{seed}", [4.0, 1.0 + seed], seed=seed, code={"my.py": f"v{seed // 2}", "other.py": "x"})
    out = report("s")
    assert "Runs are of 2 versions of my.py: 2 of v0, 2 of v1." in out and "other.py" not in out


def test_a_preset_that_was_edited_is_told(report, make_run):
    """Nobody overrode the rate, and the algorithms alone tell the runs apart: it is still another setting."""
    for i, (algorithm, seed) in enumerate(itertools.product(("fedavg", "fedprox"), range(4))):
        config = {"lr": 0.1 if algorithm == "fedavg" else 0.5, "momentum": 0.0}
        make_run(f"s/{i}", [3.0, 1.0 + 0.01 * seed], algorithm=algorithm, seed=seed, config=config)
    out = report("s", "--table", "comparison")
    assert "each at its only setting: lr=0.1 / lr=0.5" in out and "momentum" not in out


def test_values_of_other_types_are_other_values(report, make_run):
    values = [True, 1, '"1"', None, '"null"', 0.5]
    for i, (value, seed) in enumerate(itertools.product(values, (0, 1))):
        config = {"task_option": value.strip('"') if isinstance(value, str) else value}
        make_run(f"s/{i}", [3.0, 1.0 + i], config=config, task_option=value, seed=seed)
    read = json.loads(report("s", "--format", "json", "--table", "groups"))
    assert [group["runs"] for group in read["groups"]] == [2] * len(values)
    assert {str(group["task_option"]) for group in read["groups"]} == {"true", "1", '"1"', "None", '"null"', "0.5"}


def test_of_a_repeated_run_the_one_that_ended_counts(report, make_run):
    make_run("a/0", [3.0, 2.5], "pruned", lr=0.1)
    make_run("b/0", [3.0, 1.0], lr=0.1)
    for folders in (("a", "b"), ("b", "a")):
        read = json.loads(report(*folders, "--format", "json"))
        assert [point["status"] for point in read["points"]] == ["completed"]


@pytest.mark.parametrize("followed", [("test_f1", "valid_loss"), ("valid_loss", "test_f1")])
def test_best_rounds_chosen_on_test_samples_are_told_in_any_order(followed):
    selection = Selection(Objective("best_valid_loss"), tuple(map(Objective, followed)), is_asked=True)
    assert selection.notes("best_valid_loss") == ["some runs' best rounds are chosen by test_f1, on test samples"]


def test_numbers_whose_squares_are_none(report, make_run):
    for i, (algorithm, seed) in enumerate(itertools.product(("fedavg", "fedprox"), range(3))):
        loss = (1e308 if algorithm == "fedavg" else 1e160) * (1 - 0.1 * seed)
        make_run(f"s/{i}", [3e307, loss], algorithm=algorithm, seed=seed)
    assert "e+307" in report("s")
