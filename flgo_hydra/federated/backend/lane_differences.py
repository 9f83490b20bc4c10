"""Do lanes compute what clients one after another compute? Steps, smaller batches that are filled up, and messages.

The first, the second and the last lane are looked at: two of one run, and one of the last run.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Client, State, Tensors
from flgo_hydra.federated.algorithm.message import sends_own
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.fillings import filled_batches
from flgo_hydra.federated.backend.lane_schedule import MASKED, StepArrays, schedule
from flgo_hydra.federated.backend.lane_tensors import Numbers
from flgo_hydra.federated.backend.lanes import Lanes
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.trial import Difference, difference, rounded
from flgo_hydra.federated.clients.client_program import unflat
from flgo_hydra.federated.schedule import Order
from flgo_hydra.federated.training import ServerState

_FILLINGS = 8
"""Of smaller batches, that a trial of masked steps takes at least."""


class LaneDifferences:
    """Lanes beside plain steps.

    Args:
        plain: steps on copies of the first and the last run's model, by number.
        servers, numbers: of the runs, P.
    """

    def __init__(
        self, lanes: Lanes, plain: Mapping[int, LocalSteps], servers: Sequence[ServerState], numbers: Sequence[Numbers]
    ) -> None:
        self._lanes, self._plain, self._servers, self._numbers = lanes, plain, servers, numbers
        self._k = lanes.clients_per_run
        self._looked_at = sorted({0, 1 % self._k, lanes.size - 1})
        self._kept = lanes.kept_at_trial()
        self._facts = lanes.facts_at_trial()
        self._ids = lanes.ids_at_trial()

    def of_steps(self, is_rounded: bool) -> Difference | None:
        """The worst difference between steps of every kind, or none.

        Args:
            is_rounded: a difference as large as a rounding of the parameters makes is none.
        """
        with torch.no_grad():
            for number in self._lanes.kinds:
                if (found := self._of_kind(number, is_rounded)) is not None:
                    return found
            return self._of_fillings(is_rounded) if MASKED in self._lanes.kinds else None

    def _of_kind(self, number: int, is_rounded: bool) -> Difference | None:
        orders = self._lanes.orders_at_trial(number)
        self._lanes.begin(self._servers, self._numbers, orders, self._kept, self._facts, self._ids)
        self._lanes.take(schedule(orders, {number}, number or self._lanes.extent.width))
        for lane in self._looked_at:
            plain, noise = self._plain_ends(lane, orders[lane].batches(), is_rounded)
            if (found := self._difference([lane], plain, noise)) is not None:
                return found
        return None

    def _of_fillings(self, is_rounded: bool) -> Difference | None:
        """Of masked steps on smaller batches, whatever fills them up.

        The lanes of a run take them at once, as many as there are, and some more steps where there are few.
        """
        lanes, k = self._lanes, self._k
        tried = filled_batches(self._plain[0], self._servers[0], lanes.extent.partial, lanes.extent.width)
        tried = tried[: max(k, _FILLINGS)]
        firsts = {size: rows[:size] for size, rows in tried}
        ends = {
            (run, size): self._plain_ends(run * k, [rows], is_rounded)
            for run in self._plain
            for size, rows in firsts.items()
        }
        # Of one client in all lanes of a run.
        facts = {name: t[::k].repeat_interleave(k, dim=0) for name, t in self._facts.items()}
        for begin in range(0, len(tried), k):
            some = [tried[i % len(tried)] for i in range(begin, begin + k)]
            orders = [Order(rows, (len(rows),)) for _, rows in some] * (lanes.size // k)
            weights = np.zeros((lanes.size, lanes.extent.width))
            for lane in range(lanes.size):
                size, _ = some[lane % k]
                weights[lane, :size] = 1.0 / size
            is_active = np.ones(lanes.size, np.bool_)
            lanes.begin(self._servers, self._numbers, orders, self._kept, facts, self._ids)
            lanes.take([StepArrays(MASKED, np.stack([order.rows for order in orders]), weights, is_active)])
            for (run, size), (plain, noise) in ends.items():
                own = [run * k + i for i, (of_lane, _) in enumerate(some) if of_lane == size]
                if own and (found := self._difference(own, plain, noise)) is not None:
                    return found
        return None

    def _plain_ends(self, lane: int, batches: Sequence[np.ndarray], is_rounded: bool) -> tuple[Tensors, Tensors | None]:
        """What plain steps of a lane's client come to, and what from rounded parameters."""
        run = lane // self._k
        loop, server, hyper = self._plain[run], self._servers[run], self._numbers[run].hyper
        rows = [torch.from_numpy(batch).to(loop.data.x_train.device) for batch in batches]
        client = self._client(lane)
        noise = loop.after(rows, rounded(server), client, hyper) if is_rounded else None
        return loop.after(rows, server, client, hyper), noise

    def _client(self, lane: int) -> Client:
        server = self._servers[lane // self._k]
        return Client(
            server.params, server.state, _of_lane(self._kept, lane), {name: t[lane] for name, t in self._facts.items()}
        )

    def _difference(self, own: list[int], plain: Tensors, noise: Tensors | None) -> Difference | None:
        """Between what these lanes, of clients alike, hold and one end of plain steps."""
        run = own[0] // self._k
        tensors = self._lanes.tensors
        ours = {name: t.detach()[own] for name, t in {**tensors.params, **tensors.buffers}.items()}

        def each(end: Tensors) -> Tensors:
            return {name: end[name].expand(len(own), *end[name].shape) for name in ours}

        before = self._plain[run].after((), self._servers[run], self._client(own[0]), self._numbers[run].hyper)
        return difference(before, each(plain), ours, None if noise is None else each(noise))

    def require_messages(self, num_steps: Sequence[int]) -> None:
        """Raises `Cannot` where what clients send and keep differs from what each alone does.

        Args:
            num_steps: of each lane, H.
        """
        lanes, algorithm = self._lanes, self._lanes.recipe.algorithm
        if not sends_own(algorithm):
            return
        with torch.no_grad():
            orders = lanes.orders_at_trial(lanes.kinds[0])
            lanes.begin(self._servers, self._numbers, orders, self._kept, self._facts, self._ids)
            for p in lanes.tensors.params.values():  # a step that no weights of zeros would hide
                p.mul_(1.01).add_(0.01)
            with cannot("`finish` of clients side by side: "):
                found = lanes.tensors.finish(num_steps, None)
            for lane in self._looked_at:
                params = {name: p[lane].detach() for name, p in lanes.tensors.params.items()}
                hyper = self._numbers[lane // self._k].hyper
                plain = self._plain[0]
                carry = {"model": params} if plain.program is None else unflat(params)
                buffers = lanes.tensors.buffers_of(lane)
                alone = plain.end(self._ids[lane], carry, self._client(lane), num_steps[lane], hyper, buffers)
                theirs, ours = _flat(alone), _flat((_of_lane(found[0], lane), _of_lane(found[1], lane)))
                if theirs.keys() != ours.keys():
                    raise Cannot("`finish` of clients side by side sends something else than one after another")
                ours = {name: t.to(theirs[name].dtype) for name, t in ours.items()}
                before = {name: torch.zeros_like(t) for name, t in theirs.items()}
                if (worst := difference(before, theirs, ours)) is not None:
                    raise Cannot(f"`finish` of clients side by side: {worst}")


def _of_lane(state: State, lane: int) -> State:
    return {s: {name: t[lane] for name, t in ts.items()} for s, ts in state.items()}


def _flat(ends: tuple[State, State]) -> dict[str, Tensor]:
    """What is sent and what is kept, by names of its parts."""
    parts = zip(("sent", "kept"), ends, strict=True)
    return {f"{part}.{s}.{name}": t for part, state in parts for s, ts in state.items() for name, t in ts.items()}
