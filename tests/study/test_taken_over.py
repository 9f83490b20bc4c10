"""Run folders are the truth: a study that is gone, or kept elsewhere from now on, is made from them."""

import json
from pathlib import Path

import optuna
import pytest

SMALL = ("num_rounds=2", "model=logistic", "task.num_clients=2", "num_steps=1", "hydra/launcher=basic")
SWEEP = ("-m", *SMALL, "hydra.sweep.dir=sweep", "lr=0.1,0.01", "seed=0,1")


def times() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}


@pytest.fixture
def swept(command):
    done = command(*SWEEP)
    assert done.status == 0, done.err
    return times()


@pytest.mark.parametrize("replicate", [(), ("hydra.sweeper.replicate=seed",)], ids=["points", "replicates"])
@pytest.mark.few(1)
def test_a_study_that_was_deleted(command, replicate):
    assert command(*SWEEP, *replicate).status == 0
    before = times()
    Path("sweep/study.journal").unlink()
    done = command(*SWEEP, *replicate)
    assert done.status == 0, done.err
    assert times() == before and len(before) == 4 and "made anew from 4 runs" in done.out + done.err
    assert "study:" in done.out


def test_runs_that_were_swapped_are_run_again_and_no_other(command, swept):
    for name in ("result.json", "rounds.jsonl"):
        one, other = Path("sweep/0", name), Path("sweep/3", name)
        texts = one.read_bytes(), other.read_bytes()
        one.write_bytes(texts[1])
        other.write_bytes(texts[0])
    before = times()
    Path("sweep/study.journal").unlink()
    done = command(*SWEEP)
    assert done.status == 0, done.err
    assert (done.out + done.err).count("which is kept as result.json.damaged") == 2
    assert len(times()) == 4 and sum(times()[path] == time for path, time in before.items()) == 2
    assert len(list(Path("sweep").glob("*/result.json.damaged"))) == 2


def test_runs_that_were_swapped_under_their_study_are_set_aside(command, swept):
    before = {n: Path(f"sweep/{n}/rounds.jsonl").read_bytes() for n in "03"}
    for name in ("result.json", "rounds.jsonl"):
        one, other = Path("sweep/0", name), Path("sweep/3", name)
        texts = one.read_bytes(), other.read_bytes()
        one.write_bytes(texts[1])
        other.write_bytes(texts[0])
    done = command(*SWEEP)
    assert done.status == 0, done.err
    said = done.out + done.err
    assert said.count("has the result of another config, which is kept as result.json.damaged") == 2
    assert len(times()) == 4
    for number, other in ("03", "30"):
        assert Path(f"sweep/{number}/rounds.jsonl.damaged").read_bytes() == before[other]


@pytest.mark.few(1)
def test_the_last_entries_of_a_study_that_a_loss_of_power_has_taken(command, swept):
    """Its run folders have the results: nothing is run again, and the study has all of its trials."""
    journal = Path("sweep/study.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    begun = [i for i, line in enumerate(lines) if b'"op_code":4' in line]
    assert len(begun) == 4
    for rest in (b"", bytes(300) + b"\n" + lines[-1]):
        journal.write_bytes(b"".join(lines[: begun[2]]) + rest)
        done = command(*SWEEP)
        assert done.status == 0, done.err
        assert times() == swept
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        (study,) = optuna.get_all_study_summaries(storage)
        assert study.n_trials == 4
    assert "is damaged: its line" in done.out + done.err and Path("sweep/study.journal.damaged").exists()


@pytest.mark.few(1)
def test_another_storage(command, swept):
    done = command(*SWEEP, "hydra.sweeper.storage=sqlite:///new.db", "hydra.sweeper.study_name=new")
    assert done.status == 0, done.err
    assert times() == swept
    study = optuna.load_study(study_name="new", storage="sqlite:///new.db")
    assert sorted((trial.params["lr"], trial.params["seed"]) for trial in study.trials) == [
        (lr, seed) for lr in (0.01, 0.1) for seed in (0, 1)
    ]


def test_a_study_that_was_being_made_when_somebody_killed_it(command, swept):
    optuna.create_study(study_name="new", storage="sqlite:///new.db").set_user_attr("is_being_rebuilt", True)
    done = command(*SWEEP, "hydra.sweeper.storage=sqlite:///new.db", "hydra.sweeper.study_name=new")
    assert done.status == 0, done.err
    assert times() == swept
    assert len(optuna.load_study(study_name="new", storage="sqlite:///new.db").trials) == 4


@pytest.mark.few(1)
def test_a_part_of_a_sweep_leaves_what_the_sweep_is_of(command, swept, monkeypatch):
    from flgo_hydra.resume import read_command
    from flgo_hydra.study.space.kept_grid import KEEP_RECORD

    before = Path("sweep/multirun.yaml").read_bytes()
    with monkeypatch.context() as patched:
        patched.setenv(KEEP_RECORD, "1")
        assert command(*read_command(Path("sweep"), ["--only", "seed=2"]).arguments).status == 0
    assert Path("sweep/multirun.yaml").read_bytes() == before and len(times()) == 6
    Path("sweep/3/result.json").unlink()
    assert command(*read_command(Path("sweep")).arguments).status == 0
    assert Path("sweep/3/result.json").exists()


def test_a_fixed_setting_is_refused_as_ever(command, swept):
    from flgo_hydra.resume import read_command

    done = command(*read_command(Path("sweep"), ["num_rounds=3"]).arguments)
    assert done.status == 1 and "`num_rounds` was 2 and is 3 now" in done.err and times() == swept


def test_a_damaged_run_is_named_and_run_again(command, swept):
    before = json.loads(Path("sweep/2/result.json").read_text())
    text = Path("sweep/2/result.json").read_text()
    Path("sweep/2/result.json").write_text(text.replace(str(before["best_valid_loss"]), "0.001"))
    Path("sweep/1/rounds.jsonl").write_text('{"kind": "end"}\n')
    done = command(*SWEEP)
    assert done.status == 0, done.err
    said = done.out + done.err
    assert "result.json has been changed since it was written. It is run again." in said
    assert "rounds.jsonl has been changed since the run ended. It is run again." in said
    assert {path for path, time in times().items() if time != swept[path]} == {
        "sweep/1/result.json",
        "sweep/2/result.json",
    }
    after = json.loads(Path("sweep/2/result.json").read_text())
    assert after["best_valid_loss"] == before["best_valid_loss"]
    assert Path("sweep/2/result.json.damaged").exists() and Path("sweep/1/rounds.jsonl.damaged").exists()


def test_a_folder_with_files_of_somebody_else_is_refused(command):
    Path("results.csv").write_text("mine\n")
    done = command("-m", *SMALL, "hydra.sweep.dir=.", "lr=0.1,0.01")
    assert done.status == 1 and "holds results.csv" in done.err and "hydra.sweep.dir" in done.err
    assert Path("results.csv").read_text() == "mine\n" and sorted(path.name for path in Path().iterdir()) == [
        "results.csv"
    ]


def test_passwords_are_neither_printed_nor_written(command, postgresql):
    secret = "s3cr3t"
    url = postgresql.replace("postgres@", f"postgres:{secret}@")
    done = command(*SWEEP, f"hydra.sweeper.storage='{url}'", "hydra.sweeper.study_name=new")
    assert done.status == 0, done.err
    assert secret not in done.out + done.err and "postgres:***@" in done.out
    written = [path for path in Path().rglob("*") if path.is_file()]
    assert len(written) > 20 and not [path for path in written if secret.encode() in path.read_bytes()]
    assert "***" in Path("sweep/multirun.yaml").read_text()
