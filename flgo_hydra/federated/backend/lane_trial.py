"""Lanes that do what clients one after another do, in the fastest form that does, or the reason why none does.

The forms, each plainer than the one before: recorded steps with layers in their dual form, recorded steps, plain steps
side by side. All kinds of steps that a run can take are made ready and tried before its first round.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.extent import Extent
from flgo_hydra.federated.backend.habits import TRIAL_LR
from flgo_hydra.federated.backend.lane_differences import LaneDifferences
from flgo_hydra.federated.backend.lane_schedule import MASKED
from flgo_hydra.federated.backend.lane_tensors import Numbers
from flgo_hydra.federated.backend.lanes import Lanes
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.mixing import why_mixed
from flgo_hydra.federated.backend.python_state import outside_kept
from flgo_hydra.federated.backend.trial import Differs, few, is_wide, verdict, widened
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.randomness import generators_kept
from flgo_hydra.federated.training import ServerState
from flgo_hydra.recorder.graph import exact_convolutions

MakeLanes = Callable[[nn.Module, Data, LocalSteps, int, int, EngineConf], Lanes]
"""(model, data, one that has a client's parameters, P, K, form) -> lanes"""


def find_lanes(
    make: MakeLanes,
    extent: Extent,
    loops: Sequence[LoopBackend],
    servers: Sequence[ServerState],
    numbers: Sequence[Numbers],
    clients: int,
    engine: EngineConf,
) -> Lanes:
    """Makes lanes and tries them.

    Args:
        loops, servers, numbers: of the runs, P.
        clients: K.
        engine: which forms may be taken.
    Raises:
        Cannot: none does what plain steps do.
    """
    first = loops[0]
    habits = first.habits(servers[0], numbers[0].hyper)
    first.find_program(servers[0], numbers[0].hyper)
    if habits.why_apart:
        raise Cannot(habits.why_apart)
    tried = [one._replace(hyper={**one.hyper, "lr": TRIAL_LR}) for one in numbers]
    plain = {run: loops[run].copy() for run in {0, len(loops) - 1}}
    why_plainer = ""
    forms = [engine, replace(engine, dual="off"), replace(engine, dual="off", compile="off")]
    if first.program is not None or not engine.compiles:
        forms = forms[1:]
    for form in [form for i, form in enumerate(forms) if form not in forms[:i]]:
        model = copy.deepcopy(first.model)
        model.train()
        lanes = make(model, first.data, first, len(loops), clients, form)
        kept = {"model": first.model, "algorithm": first.step.algorithm} if first.has_users_code else {}
        with generators_kept(), outside_kept(**kept):
            lanes.record(extent.kinds, numbers)  # what vmap does not take, it takes in no form
            with exact_convolutions():
                try:
                    _require_alike(lanes, make, extent, loops, plain, servers, tried, form)
                except Cannot as error:
                    why_plainer = str(error)
                    if lanes.is_recorded:
                        continue
                    raise  # the plainest has been tried
                if MASKED in extent.kinds:
                    mixed = why_mixed(plain[0], servers[0], extent.partial, extent.width, extent.least)
                    if mixed:  # it is so in all forms
                        raise Cannot(mixed)
            lanes.capture(servers, tried)
        lanes.why_plainer = why_plainer
        if first.has_users_code:
            lanes.begin_to_watch()
        return lanes
    raise Cannot(why_plainer)


def _require_alike(
    lanes: Lanes,
    make: MakeLanes,
    extent: Extent,
    loops: Sequence[LoopBackend],
    plain: dict[int, LocalSteps],
    servers: Sequence[ServerState],
    numbers: Sequence[Numbers],
    form: EngineConf,
) -> None:
    """Raises `Cannot` where the lanes do otherwise than plain steps."""
    ends = [0, len(loops) - 1] if len(loops) > 1 else [0]

    differences = LaneDifferences(lanes, plain, servers, numbers)

    def wide() -> Differs | None:
        data = few(loops[0].data, 2 * extent.width + 1)
        theirs = {row: plain[run].copy(data, torch.float64) for row, run in enumerate(ends)}
        for row, run in enumerate(ends):
            theirs[row].find_program(widened(servers[run]), numbers[run].hyper)
        model = copy.deepcopy(theirs[0].model)
        model.train()
        if not is_wide(model, data.x_train[:2]):
            return None
        clients = min(lanes.size // len(loops), 3 if len(ends) == 1 and MASKED in extent.kinds else 2)
        ours = make(model, data, theirs[0], len(ends), clients, form)
        ours.record(extent.kinds, [numbers[run] for run in ends])
        some = [widened(servers[run]) for run in ends]
        return LaneDifferences(ours, theirs, some, [numbers[run] for run in ends]).of_steps

    with cannot():
        found = verdict(differences.of_steps, wide, next(iter(loops[0].params.values())).dtype)
    if found:
        kind = " (batches that differ in size)" if extent.kinds == {MASKED} else ""
        raise Cannot(f"clients side by side compute something else than one after another{kind}: {found}")
    num_steps = [[extent.most_steps] * lanes.size]
    if extent.least_steps < extent.most_steps and lanes.size > 1:
        num_steps.append([extent.most_steps if lane % 2 == 0 else extent.least_steps for lane in range(lanes.size)])
    for steps in num_steps:
        differences.require_messages(steps)
