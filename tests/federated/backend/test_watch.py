"""What Python comes to keep late in a run is seen: from then on steps are plain, or the run is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.backend.fused import CannotFuse
from flgo_hydra.federated.backend.loop import KEPT_BY_PYTHON
from flgo_hydra.federated.backend.watch import ChangedLate, Watch

from .test_fused import Runs, mlp
from .test_trial import train

_LATE = []


def moved(params, first):
    return float(sum((p - f.to(p.dtype)).abs().sum() for p, f in zip(params.values(), first, strict=True)))


def copies(params):
    return [p.detach().clone() for p in params.values()]


class LateAtServer(Algorithm):
    """A tenth of the step once the server has moved far enough."""

    is_late = False

    def init_server(self, params):
        self.first = copies(params)
        return {}

    def correct(self, grads, params, client, hyper):
        return {name: g * (0.1 if self.is_late else 1.0) for name, g in grads.items()}

    def update_server(self, params, state, message, participation, hyper):
        self.note(params)
        return super().update_server(params, state, message, participation, hyper)

    def note(self, params):
        if moved(params, self.first) > self.far:
            self.is_late = True


class LateInGlobal(LateAtServer):
    def correct(self, grads, params, client, hyper):
        return {name: g * (0.1 if _LATE else 1.0) for name, g in grads.items()}

    def note(self, params):
        if moved(params, self.first) > self.far and not _LATE:
            _LATE.append(1)


class LateAtClient(LateAtServer):
    def finish(self, params, client, num_steps, hyper):
        if num_steps > 2:  # not in the trial
            self.note(params)
        return super().finish(params, client, num_steps, hyper)

    update_server = Algorithm.update_server


@pytest.fixture
def far(ragged, monkeypatch):
    """The server goes as far in its third round or so."""
    _LATE.clear()
    ends = [train("plain", ragged, mlp, num_rounds=rounds)[0] for rounds in (0, 1, 3)]
    _, after_1, after_3 = (moved(end, list(ends[0].values())) for end in ends)
    assert after_3 > after_1
    monkeypatch.setattr(LateAtServer, "far", (after_1 + after_3) / 2, raising=False)


@pytest.mark.parametrize("backend", ["recorded", "vmap", "vmap, plain"])
@pytest.mark.parametrize("algorithm", [LateAtServer, LateInGlobal])
def test_from_then_on_steps_are_plain(ragged, far, algorithm, backend):
    ends, metrics, _ = train("plain", ragged, mlp, algorithm(), num_rounds=6)
    _LATE.clear()
    found, found_metrics, note = train(backend, ragged, mlp, algorithm(), num_rounds=6)
    _LATE.clear()
    for name, tensor in ends.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12)
    assert found_metrics[-1]["valid_loss"] == pytest.approx(metrics[-1]["valid_loss"], abs=1e-12)
    why = note["why_not_vmap" if backend.startswith("vmap") else "why_not_compiled"]
    assert "no trial before the first round had shown" in why


def test_steps_were_recorded_until_then(ragged, far):
    _, _, note = train("recorded", ragged, mlp, LateAtServer(), num_rounds=1)
    assert note["compiled_batch_sizes"]
    _, _, note = train("vmap", ragged, mlp, LateAtServer(), num_rounds=1)
    assert note["compiled_with_masks"]


@pytest.mark.parametrize("backend", ["recorded", "vmap"])
def test_a_change_while_clients_train_ends_the_run(ragged, far, backend):
    with pytest.raises(ChangedLate, match=r"`algorithm.is_late` has changed by round \d"):
        train(backend, ragged, mlp, LateAtClient(), num_rounds=6)
    train("plain", ragged, mlp, LateAtClient(), num_rounds=6)


CODE = """
from flgo_hydra.federated.algorithm.base import Algorithm


class Late(Algorithm):
    phase = 0

    def init_server(self, params):
        return {"round": {"round": next(iter(params.values())).new_zeros(())}}

    def correct(self, grads, params, client, hyper):
        return {name: g * (0.1 if self.phase else 1.0) for name, g in grads.items()}

    def finish(self, params, client, num_steps, hyper):
        if client.server["round"]["round"] >= 3:
            type(self).phase = 1
        return super().finish(params, client, num_steps, hyper)

    def update_server(self, params, server, message, participation, hyper):
        following, _ = super().update_server(params, {}, message, participation, hyper)
        return following, {"round": {"round": server["round"]["round"] + 1}}
"""


@pytest.mark.parametrize("way", ["alone", pytest.param("fused", marks=pytest.mark.slow)])
def test_and_it_begins_anew_by_plain_steps(command, way):
    Path("late.py").write_text(CODE)
    small = ["algorithm=custom", "algorithm._target_=late.Late", "algorithm.name=late", "task.num_clients=3"]
    small += ["batch_size=10", "num_epochs=1", "num_rounds=6", "dtype=float64"]
    ours = ["lr=0.05", "hydra.run.dir=ours/1"]
    if way == "fused":
        ours = ["-m", "lr=0.1,0.05", "hydra.launcher.fuse=2", "hydra.sweep.dir=ours"]
    plain = ["lr=0.05", "engine.backend=loop", "engine.compile=off", "hydra.run.dir=plain"]
    lines = []
    for folder, more in (("ours/1", ours), ("plain", plain)):
        done = command(*more, *small)
        assert done.status == 0, done.out + done.err
        text = Path(folder, "rounds.jsonl").read_text().splitlines()
        lines.append([{key: v for key, v in json.loads(line).items() if key != "seconds"} for line in text])
    assert lines[0] == lines[1] and len(lines[0]) == 7
    engine = json.loads(Path("ours", "1", "result.json").read_text())["engine"]
    assert "`Late.phase` has changed by round" in engine["why_not_compiled"]
    assert "begins anew, by plain steps" in Path("ours", "1", "flgo_hydra.log").read_text()


def test_a_model_that_changes_while_lanes_train_is_refused(ragged):
    class Width(nn.Linear):
        def __init__(self):
            super().__init__(5, 3)
            self.widths = 0

        def forward(self, x):
            if len(x) == 2:  # neither the largest batch nor the smallest
                self.widths = 1
            return super().forward(x) * (0.5 if self.widths and self.training else 1.0)

    plain, _, _ = train("plain", ragged, Width, batch_size=5)  # 7 = 5 + 2
    for backend in ("recorded", "vmap", "vmap, plain"):
        found, _, note = train(backend, ragged, Width, batch_size=5)
        for name, tensor in plain.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12, msg=f"{backend} {note}")


def test_no_checkpoint_has_it(ragged, far):
    runs = Runs(ragged, LateAtServer, num_rounds=6)
    run, member, _, _, _ = runs.make({})
    from flgo_hydra.federated.rounds import drive

    assert not member.loop.kept_by_python
    drive(run, member.loop, ragged)
    assert "is_late" in member.loop.kept_by_python[KEPT_BY_PYTHON]


@pytest.mark.parametrize("algorithm", [LateAtServer, LateInGlobal])
def test_runs_as_one_program_go_apart(ragged, far, algorithm):
    class Alone(algorithm):
        """An update that several servers can do at once: the rest is seen in an evaluation."""

        update_server = Algorithm.update_server

    class Tells(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()
            self.first = copies(dict(self.named_parameters()))

        def forward(self, x):
            if not self.training and not _LATE and moved(dict(self.named_parameters()), self.first) > algorithm.far:
                _LATE.append(1)
            return self.layers(x)

    with pytest.raises(CannotFuse, match="has changed by round"):
        Runs(ragged, Alone, Tells, num_rounds=8).together(
            [{}, {"lr": 0.2}], prepare=lambda fused: fused.prepare({"lr": 0.1})
        )
    assert not _LATE, "what one run has changed is there for others"


def test_what_is_the_same_is_no_change():
    model, algorithm = mlp(), LateAtServer()
    watch = Watch(model=model, algorithm=algorithm)
    model(torch.zeros(2, 5)).sum().backward()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert watch.changed() == ""
    algorithm.is_late = True
    assert watch.changed() == "algorithm.is_late"
    algorithm.is_late = False
    model.register_forward_hook(lambda *args: None)
    assert "hook" in watch.changed()


METRIC = """
def hooks(model, record):
    if len(record) == 3:
        next(model.parameters()).register_hook(lambda g: 2 * g)
    return {"hooks": 0.0}
"""


def test_what_a_metric_does_to_a_model_of_ours_is_seen(command):
    Path("late_metric.py").write_text(METRIC)
    small = ["task.num_clients=3", "batch_size=10", "num_rounds=5", "dtype=float64", "metrics=late_metric.hooks"]
    losses = []
    for i, more in enumerate((["engine.backend=loop", "engine.compile=off"], ["engine.backend=vmap"], [])):
        assert command(*small, *more, f"hydra.run.dir={i}").status == 0
        losses.append(json.loads(Path(str(i), "rounds.jsonl").read_text().splitlines()[-1])["valid_loss"])
    assert losses == pytest.approx(losses[:1] * 3, rel=0, abs=1e-12)
    assert "(hooks)` has changed by round" in json.loads(Path("1", "result.json").read_text())["engine"]["why_not_vmap"]
