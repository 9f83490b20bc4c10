"""The order of points over their seeds: as the study has it, whose point is complete or has no value."""

import json
import math

from flgo_hydra.report.command import main


def groups(capfd, *arguments):
    assert main(["s", "--format", "json", *arguments]) == 0
    return json.loads(capfd.readouterr().out)["groups"]


def test_a_point_that_lacks_a_failed_run_comes_after_those_that_lack_none(make_run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2):
        make_run(f"s/{seed}", [9.0, 1.0 + seed / 10], lr=0.1, seed=seed)
        make_run(f"s/{3 + seed}", [9.0, 0.5], lr=0.2, seed=seed, **({"failure": "E: no"} if seed == 2 else {}))
        make_run(f"s/{6 + seed}", [9.0, 0.8], lr=0.3, seed=seed, **({"status": None} if seed == 2 else {}))
    found = groups(capfd)
    assert [group["lr"] for group in found] == [0.3, 0.1, 0.2]  # of 0.3 one is still to come
    assert found[2]["left_out"] == "1 failed" and found[0]["left_out"].startswith("1 ")
    assert main(["s"]) == 0
    assert "kinder than one over all, and comes after" in capfd.readouterr().out


def test_a_run_that_never_had_a_value_is_told(make_run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make_run(f"s/{seed}", [9.0, 1.0], lr=0.1, seed=seed)
        make_run(f"s/{2 + seed}", [math.inf, math.inf], lr=0.2, seed=seed)
    assert [group["left_out"] for group in groups(capfd)] == ["", "2 without a best"]
    assert main(["s"]) == 0
    assert "without a best: 2 of 4" in capfd.readouterr().out
