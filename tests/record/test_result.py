import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import (
    Failure,
    RunResult,
    defect_of,
    keep_rounds,
    read_failure,
    read_result,
    read_rounds,
    set_defects_aside,
    summarize,
    write_failure,
    write_result,
)

RESULT = RunResult(
    status="completed",
    best_valid_loss=0.25,
    best_round=3,
    last_round=5,
    best={"valid_loss": 0.25, "test_accuracy": 0.5},
    last={"valid_loss": 0.75},
    seconds=1.5,
    peak_memory_mib=None,
    device="cpu",
    seed=0,
    task={"name": "digits", "partition": {"name": "iid"}},
    model={"name": "mlp", "hidden": [200]},
    algorithm={"name": "fedavg"},
    option={"lr": 0.1, "num_steps": None},
    versions={"torch": "2"},
    fingerprint="abc",
)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def test_round_trip(run: RunPaths) -> None:
    write_result(run, RESULT)
    assert read_result(run) == RESULT


def test_infinite_best_and_nan_metrics_come_back(run: RunPaths) -> None:
    last = {"valid_loss": math.nan, "test_loss": math.inf}
    write_result(run, dataclasses.replace(RESULT, best_valid_loss=math.inf, last=last))
    result = read_result(run)
    assert result is not None and result.best_valid_loss == math.inf
    assert all(math.isnan(value) for value in result.last.values())
    assert "NaN" not in run.result.read_text() and "Infinity" not in run.result.read_text()


def rewrite(run: RunPaths, **changed: object) -> None:
    """A result as an earlier version wrote it, without the hash that this one adds."""
    values = {**json.loads(run.result.read_text()), **changed}
    del values["sha256"], values["format"]
    run.result.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def test_keys_of_a_later_version_are_left_out(run: RunPaths) -> None:
    write_result(run, RESULT)
    rewrite(run, new_in_2_0=1)
    assert read_result(run) == RESULT


def test_message_and_attempts_may_be_missing(run: RunPaths) -> None:
    write_result(run, RESULT)
    rewrite(run, message=..., attempts=...)
    assert read_result(run) == RESULT


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "garbage",
        "{}",
        "[]",
        '{"status": "completed"}',
        '{"best": null, "last": null}',
        '{"best": {}, "last": {}, "best_valid_loss": 1}',
    ],
)
def test_what_is_no_result_is_none(run: RunPaths, content: str | None) -> None:
    if content is not None:
        run.result.write_text(content)
    assert read_result(run) is None


def test_half_written_result_is_none(run: RunPaths) -> None:
    write_result(run, RESULT)
    whole = run.result.read_text()
    run.result.write_text(whole[: len(whole) // 2])
    assert read_result(run) is None


def test_a_result_takes_checkpoint_and_failure_away(run: RunPaths) -> None:
    run.checkpoint.touch()
    write_failure(run, Failure("ValueError", "first attempt"))
    write_result(run, RESULT)
    assert not run.checkpoint.exists() and not run.failure.exists()


@pytest.mark.parametrize("status, objective", [("completed", 0.25), ("early_stopped", 0.25), ("diverged", math.nan)])
def test_objective(status: str, objective: float) -> None:
    assert dataclasses.replace(RESULT, status=status).value == pytest.approx(objective, nan_ok=True)


def test_failure_round_trip(run: RunPaths) -> None:
    failure = Failure("OutOfMemory", "too big", "Traceback", [{"attempt": 1, "exit": -9}], 30000)
    write_failure(run, failure)
    assert read_failure(run) == failure


@pytest.mark.parametrize("content", [None, "garbage", "{}", '{"kind": "x"}'])
def test_what_is_no_failure_is_none(run: RunPaths, content: str | None) -> None:
    if content is not None:
        run.failure.write_text(content)
    assert read_failure(run) is None


def test_read_rounds(run: RunPaths) -> None:
    assert read_rounds(run) == []
    run.rounds.write_text('{"round": 0, "valid_loss": 2.5}\n{"round": 1, "valid_loss": null}\n{"round": 2, "va')
    first, second = read_rounds(run)
    assert first == {"round": 0, "valid_loss": 2.5}
    assert second["round"] == 1 and math.isnan(second["valid_loss"])


def test_summarize() -> None:
    assert summarize({"valid_loss": 0.12345, "test_accuracy": 1.0}) == "valid_loss 0.1235, test_accuracy 1.0000"
    assert summarize({"valid_loss": math.nan}, digits=2) == "valid_loss nan"


def test_a_result_that_outlives_a_loss_of_power_has_all_its_run(tmp_path, disk, monkeypatch):
    paths = RunPaths(tmp_path / "0")
    before = {".hydra/config.yaml": b"lr: 0.1\n", ".hydra/overrides.yaml": b"[]\n", "rounds.jsonl": b'{"round": 0}\n'}
    for name, content in {**before, "best_model.safetensors": b"weights"}.items():
        (paths.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.folder / name).write_bytes(content)
    real = os.replace

    def replace(source, target):  # the moment from which the result may be found
        for name, content in before.items():
            assert disk.after_power_loss(paths.folder / name) == content
        assert disk.after_power_loss(paths.best_model) == b"weights"
        assert paths.folder.name in disk.names[tmp_path]
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_result(paths, RESULT)
    assert disk.after_power_loss(paths.result) == paths.result.read_bytes()


def test_a_failure_outlives_a_loss_of_power(tmp_path, disk):
    write_failure(RunPaths(tmp_path), Failure("error", "no"))
    assert disk.after_power_loss(tmp_path / "failure.json") == (tmp_path / "failure.json").read_bytes()


def test_a_result_whose_digits_were_changed_is_not_believed(run: RunPaths) -> None:
    write_result(run, RESULT)
    text = run.result.read_text()
    run.result.write_text(json.dumps(json.loads(text)))  # written in another way, it says the same
    assert read_result(run) == RESULT and defect_of(run) is None
    assert "0.25" in text
    run.result.write_text(text.replace("0.25", "0.15", 1))
    assert read_result(run) is None
    assert str(defect_of(run)) == "result.json has been changed since it was written"


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"status": "finished"}, "has no `status` of ours: 'finished'"),
        ({"best_round": 10**6}, "has `best_round` 1000000 of"),
        ({"best_round": -1}, "has `best_round` -1 of"),
        ({"best": {"valid_loss": "low"}}, "`best`, `valid_loss` is a text, not a number"),
        ({"option": []}, "`option` is a list, not an object"),
        ({"monitor": {"metric": 3}}, "`metric` is a number, not a text"),
        ({"seconds": ...}, "has no `seconds`"),
    ],
)
def test_a_result_of_other_types_is_not_believed(run: RunPaths, changed: dict[str, object], why: str) -> None:
    write_result(run, RESULT)
    rewrite(run, **changed)
    assert read_result(run) is None
    assert why in str(defect_of(run))


def test_a_result_that_has_lost_its_hash_is_not_believed(run: RunPaths) -> None:
    write_result(run, RESULT)
    values = json.loads(run.result.read_text())
    del values["sha256"]
    run.result.write_text(json.dumps(values))
    assert read_result(run) is None
    assert "it has lost its `sha256`" in str(defect_of(run))


ROUNDS = [{"round": r, "valid_loss": 1 / 2**r, "test_accuracy": 0.5 + r / 16} for r in range(4)]
SOUND = {
    "best_valid_loss": 0.125,
    "best_round": 3,
    "last_round": 3,
    "best": {"valid_loss": 0.125, "test_accuracy": 0.6875},
    "option": {"num_rounds": 3},
}


@pytest.mark.parametrize(
    "changed, why",
    [
        ({}, None),
        ({"best_valid_loss": 0.0625}, "has another `best_valid_loss` than rounds.jsonl"),
        ({"best": {"valid_loss": 0.0625}}, "has another `best` than round 3 in rounds.jsonl"),
        ({"best": {"valid_loss": 0.125, "test_accuracy": 0.75}}, "has another `best` than round 3 in rounds.jsonl"),
        ({"best": {"valid_loss": 0.125, "own": 1.0}}, "has another `best` than round 3 in rounds.jsonl"),
        (
            {"best_round": 1, "best": {"valid_loss": 0.5}},
            "has a best valid_loss that is not the best in rounds.jsonl",
        ),
        ({"best_round": 2, "last_round": 2, "option": {}}, "ends in round 2, but rounds.jsonl in 3"),
        ({"option": {"num_rounds": 4}}, "is completed after round 3 of 4"),
        ({"status": "pruned", "option": {"num_rounds": 2}}, "is pruned after round 3 of 2"),
        ({"status": "pruned", "last_round": 4, "option": {"num_rounds": 9}}, None),  # after a round without a line
    ],
)
def test_a_result_of_an_earlier_version_is_checked_against_itself(
    run: RunPaths, changed: dict[str, object], why: str | None
) -> None:
    run.rounds.write_text("".join(json.dumps(line) + "\n" for line in ROUNDS))
    write_result(run, RESULT)
    rewrite(run, **{**SOUND, **changed})
    assert (read_result(run) is None) == (why is not None)
    assert why is None or str(defect_of(run)) == f"result.json {why}"


def test_a_result_is_of_its_rounds(run: RunPaths) -> None:
    run.rounds.write_text('{"round": 0, "valid_loss": 2.5}\n{"round": 1, "valid_loss": 0.25}\n')
    write_result(run, RESULT)
    assert read_result(run) == RESULT
    rounds = run.rounds.read_text()
    run.rounds.write_text(rounds.replace("2.5", "2.6"))
    assert read_result(run) is None
    assert str(defect_of(run)) == "rounds.jsonl has been changed since the run ended"
    run.rounds.unlink()  # whoever deletes the curve keeps the result
    assert read_result(run) == RESULT


def test_rounds_up_to_a_defect_count(run: RunPaths) -> None:
    run.rounds.write_text('{"round": 0, "loss": 2.5}\n{"round": 1, "loss": 2.0}\n{"kind": "end"}\n{"round": 3}\n')
    assert [line["round"] for line in read_rounds(run)] == [0, 1]
    assert str(defect_of(run)) == "rounds.jsonl (line 3) `kind` is a text, not a number"
    assert [line["round"] for line in keep_rounds(run, 0)] == [0]
    assert run.rounds.read_text() == '{"round": 0, "loss": 2.5}\n' and defect_of(run) is None


def test_what_is_wrong_is_set_aside_and_nothing_else(run: RunPaths) -> None:
    assert set_defects_aside(run) == []
    write_failure(run, Failure("ValueError", "first attempt"))
    run.result.mkdir()
    run.rounds.symlink_to("nowhere")
    run.checkpoint.mkdir()
    told = set_defects_aside(run)
    assert told == [
        "result.json is a folder (kept as result.json.damaged)",
        "rounds.jsonl is a link to a file that is not there (kept as rounds.jsonl.damaged)",
        "checkpoint.pt is no file (kept as checkpoint.pt.damaged)",
    ]
    assert read_failure(run) is not None
    run.result.write_text("{")
    assert set_defects_aside(run) == ["result.json is no JSON (kept as result.json.damaged-2)"]


def test_a_result_of_changed_rounds_goes_with_them(run: RunPaths) -> None:
    run.rounds.write_text('{"round": 0, "valid_loss": 0.25}\n')
    write_result(run, RESULT)
    run.rounds.write_text('{"round": 0, "valid_loss": 0.125}\n')
    (told,) = set_defects_aside(run)
    assert "has been changed since the run ended" in told
    assert not run.result.exists() and not run.rounds.exists()


def test_texts_of_others_are_plain_when_they_are_written_and_when_they_are_read(run: RunPaths) -> None:
    odd = "x" * 2**24 + "\udc80"
    attempt = {"number": 1, "failure": {"kind": "error", "message": odd, "traceback": odd}}
    write_failure(run, Failure("Odd\ud800", odd, odd, [attempt]))
    assert run.failure.stat().st_size < 2**20
    run.failure.write_text(json.dumps({"kind": "Odd\ud800", "message": odd, "traceback": odd, "attempts": [attempt]}))
    failure = read_failure(run)
    assert failure is not None and failure.kind == "Odd\\ud800"
    for text in (failure.message, failure.traceback, failure.attempts[0]["failure"]["traceback"]):
        assert len(text) < 70_000 and text.endswith("x\\udc80")
    result = dataclasses.replace(RESULT, message=odd, warnings=[odd], engine={"why": odd})
    write_result(run, result)
    assert read_result(run) == result and len(result.warnings[0]) < 70_000


@pytest.mark.parametrize(
    "failure, is_of_machine",
    [
        (Failure("not_started", "Job 3 could not be started: [Errno 24] Too many open files."), True),
        (Failure("CannotWrite", "x cannot be written"), True),
        (Failure("OSError", "[Errno 28] No space left on device"), True),
        (Failure("OSError", "[Errno 24] Too many open files"), False),  # of a job that runs: it may leak them
        (Failure("crashed", "exited by itself with status 1"), False),
    ],
)
def test_a_failure_that_says_nothing_of_the_job(failure: Failure, is_of_machine: bool) -> None:
    assert failure.is_of_machine is is_of_machine
