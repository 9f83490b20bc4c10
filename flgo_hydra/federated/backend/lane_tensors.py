"""The tensors of clients side by side: what they start from, and what becomes of it.

P runs of K clients each are H = P K lanes, those of a run side by side. What a client has of its own is stacked,
(H, …); what the clients of a run share is one tensor where there is one run, and stacked too where there are several,
in memory that is given once a step is found to read it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, takes_all_messages
from flgo_hydra.federated.algorithm.message import Messages, sends_own
from flgo_hydra.federated.backend.dual import DualLayers
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.clients.client_program import unflat
from flgo_hydra.federated.clients.measured import stacked
from flgo_hydra.federated.optimizer import Slots
from flgo_hydra.federated.training import MEAN, UPDATE, ServerState, changes_of, row_of, states_of_copy, to_sum
from flgo_hydra.federated.transfer import to_device

_TEMPORARY_BYTES = 2**28


class Numbers(NamedTuple):
    """The numbers of a run, which may be named alike: an algorithm may have a momentum of its own."""

    hyper: Hyper
    """what the algorithm is given"""
    settings: Mapping[str, float] = {}
    """what the optimizer is made with, where that differs from run to run"""


class LaneTensors:
    """What the clients in the lanes hold.

    Args:
        like: has the parameters and buffers of one client.
        num_slots: of the optimizer.
        num_runs, clients_per_run: P and K.
        numbers: of one run, where several differ in them; None where P is 1.
    """

    def __init__(
        self,
        like: LocalSteps,
        algorithm: Algorithm,
        num_slots: int,
        num_runs: int,
        clients_per_run: int,
        numbers: Numbers | None,
    ) -> None:
        self._algorithm = algorithm
        self._messages = Messages(algorithm, like.params)
        self._measured = like.measured
        self._ids: Sequence[int] = ()
        self._runs, self._clients, self.size = num_runs, clients_per_run, num_runs * clients_per_run
        self._program, self._own_buffers = like.program, like.own_buffers
        some = next(iter(like.params.values()))
        self.device, self.dtype = some.device, some.dtype
        # As exact as a float of Python, which is what the loop uses.
        self.exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.is_shared = numbers is None
        with torch.no_grad():
            self.params = {n: self._stack(p) for n, p in like.carried.items()}
            """what steps change: the clients' models, or what the algorithm's program carries"""
            if like.program is None:
                for p in self.params.values():
                    p.requires_grad_()
            # Frozen parameters are the same for all clients of a run: only several runs, each with its own, stack them.
            is_frozen = {n: self.is_shared and isinstance(b, nn.Parameter) for n, b in like.buffers.items()}
            self.frozen = {n: b.detach().clone() for n, b in like.buffers.items() if is_frozen[n]}
            self.buffers = {n: self._stack(b) for n, b in like.buffers.items() if not is_frozen[n]}
            if like.program is None:
                kept = {n: num_slots * [p] for n, p in like.params.items()}
            else:
                kept = {n: list(own) for n, own in like.program.slots.items()}
            self.slots: dict[str, Slots] = {
                n: tuple(self._stack(torch.zeros_like(p)) for p in own) for n, own in kept.items()
            }
            at_server, at_client = states_of_copy(algorithm, like.params)
            self.kept = {s: {n: self._stack(t) for n, t in ts.items()} for s, ts in at_client.items()}
            own = {n: self._stack(self.buffers[n][0]) for n in like.own_buffers.names}
            self.to_read = like.own_buffers.joined(self.kept, own)
            """where what clients kept is read into, their own buffers with it"""
            self.facts = {n: self._stack(t) for n, t in like.first_facts.items()}
            self.num_steps = torch.ones(
                self.size, dtype=self.exact if self.is_shared else self.dtype, device=self.device
            )
            each = torch.clone if self.is_shared else self._seem_stacked
            self.anchor = {n: each(p.detach()) for n, p in like.params.items()}
            self.server = {s: {n: each(t.detach()) for n, t in ts.items()} for s, ts in at_server.items()}
        self.numbers: dict[str, Any] = {}
        """the algorithm's"""
        self.settings: dict[str, Tensor] = {}
        """the optimizer's, where they differ from run to run"""
        if numbers is None:
            self.numbers["lr"] = torch.zeros((), dtype=self.exact, device=self.device)
        else:
            zeros = torch.zeros(self.size, dtype=self.dtype, device=self.device)
            self.numbers = {name: zeros.clone() for name in numbers.hyper}
            self.settings = {name: zeros.clone() for name in numbers.settings}
        self.lr = 0.0
        self._run_of = torch.arange(self.size, device=self.device) // clients_per_run
        self._servers: Sequence[ServerState] = ()
        self.start: Tensors = {}
        """the servers' parameters, (P, …)"""

    def _stack(self, t: Tensor) -> Tensor:
        return t.detach().expand(self.size, *t.shape).clone(memory_format=torch.contiguous_format)

    def _seem_stacked(self, t: Tensor) -> Tensor:
        return t.clone().expand(self.size, *t.shape)

    def begin(
        self,
        servers: Sequence[ServerState],
        numbers: Sequence[Numbers],
        kept: State,
        facts: Tensors,
        ids: Sequence[int],
        num_steps: Sequence[int],
        elsewhere: set[str],
        is_read: Callable[[Tensor], bool],
    ) -> None:
        """Puts what the clients start from into the lanes.

        Args:
            servers: of each run, P.
            numbers: of each run, P.
            kept, facts: what the clients kept, and what is known of them, (H, …); the last lanes' may be missing.
            ids: whose lanes they are; the last lanes may be nobody's.
            num_steps: of each lane, H.
            elsewhere: parameters that are kept in another form.
            is_read: whether the steps read a tensor that a run's clients share.
        """
        self._servers, self._ids = servers, ids
        self.start = {name: self._of_runs([s.params[name] for s in servers]) for name in self.anchor}
        for name, p in self.params.items() if self._program is None else ():
            if name not in elsewhere:
                self._by_run(p.detach()).copy_(self.start[name].unsqueeze(1))
        for name, b in self.buffers.items():
            self._by_run(b).copy_(self._of_runs([s.buffers[name] for s in servers]).unsqueeze(1))
        for name, tensor in self.frozen.items():
            tensor.copy_(servers[0].buffers[name])
        kept, own_buffers = self._own_buffers.apart(kept)
        for name, rows in own_buffers.items():
            self.buffers[name][: len(rows)] = rows
        for name, slots in self.slots.items():
            for slot in slots if name not in elsewhere else ():
                slot.zero_()
        for name, tensor in self.anchor.items():
            if is_read(tensor):
                self._share(tensor, [s.params[name] for s in servers])
        for state, tensors in self.server.items():
            for name, tensor in tensors.items():
                if is_read(tensor):
                    self._share(tensor, [s.state[state][name] for s in servers])
        for state, tensors in self.kept.items():
            for name, tensor in tensors.items():
                rows = kept[state][name]
                tensor[: len(rows)].copy_(rows)  # nothing where they were read into it
        for name, rows in facts.items():
            self.facts[name][: len(rows)] = rows
        self.set_numbers(numbers)
        if self._program is not None:
            self.num_steps.copy_(torch.tensor(num_steps, dtype=self.num_steps.dtype))
            begun = self._in_lanes(self._program.begin)
            for name, p in self.params.items():
                p.copy_(begun[name])

    def mean(
        self, weights: np.ndarray, num_steps: Sequence[int], dual: DualLayers | None
    ) -> tuple[State, Tensors, State]:
        """What each run's server receives, and what the clients keep.

        Args:
            weights: float64 of shape (3, H), of the kinds of entries (`training.weights_of`); 0 without a client.
            num_steps: of each lane, H.
            dual: has the parameters that are not here.
        Returns:
            the weighted sums over each run's lanes of the messages (for an algorithm that asks for all messages, these
            themselves, (H, …)), and of what clients changed in their buffers, (P, …), and the clients' new state,
            (H, …), nothing if they keep what they had.
        """
        rows = to_device(torch.from_numpy(weights).to(self.exact), self.device)
        of_updates = rows[UPDATE]
        averaged = self._own_buffers.averaged(self.buffers)
        changed = {name: self._sum(self._buffer_changes(name), rows[MEAN]) for name in averaged}
        if self.finishes:
            sent, new = self.finish(num_steps, dual)
            new = self._own_buffers.joined(new, self.buffers)
            if takes_all_messages(self._algorithm):
                return sent, changed, new
            sums = {
                s: {n: self._sum(t, rows[row_of(s, self._algorithm)]) for n, t in ts.items()} for s, ts in sent.items()
            }
            return sums, changed, new
        # Their mean change, without each client's weights where those are in the dual form.
        changes = {} if dual is None else dual.mean_changes(self.start, of_updates.to(self.dtype))
        update = {}
        for name, p in self.params.items():
            if name in changes:
                update[name] = changes[name]
            else:
                update[name] = self._mean_change(self._by_run(p.detach()), self.start[name], of_updates)
        return (
            {"update": update},
            changed,
            self._own_buffers.joined(self.kept, self.buffers) if self._own_buffers.names else {},
        )

    def _buffer_changes(self, name: str) -> Tensor:
        """What each lane changed in a buffer, (H, …)."""
        lanes = self._by_run(self.buffers[name])
        start = self._of_runs([s.buffers[name] for s in self._servers]).unsqueeze(1)
        change = changes_of({name: lanes}, {name: start})[name]
        # Of what nobody changed not even 0 times infinity, for the lanes without a client.
        return change.masked_fill_((lanes == start).all(1, keepdim=True), 0).flatten(0, 1)

    def _mean_change(self, params: Tensor, start: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum over each run's lanes of params - start, (P, …), a few runs at a time."""
        num_runs = max(1, _TEMPORARY_BYTES // max(1, params[0].nbytes))
        of_runs = weights.to(params.dtype).view(self._runs, 1, self._clients)
        parts = []
        for begin in range(0, self._runs, num_runs):
            at = slice(begin, begin + num_runs)
            change = params[at] - start[at].unsqueeze(1)
            parts.append(torch.bmm(of_runs[at], change.view(*change.shape[:2], -1)).view_as(start[at]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def finish(self, num_steps: Sequence[int], dual: DualLayers | None) -> tuple[State, State]:
        """What the clients in the lanes send and keep, (H, …)."""
        if dual is not None:
            dual.put_weights(self.start)
        # One number where all lanes took as many steps: exact, and no tensor to multiply with. Not where there are
        # several runs: one's numbers must not depend on what another's clients did.
        counts: Any = num_steps[0]
        if len(set(num_steps)) > 1 or not self.is_shared:
            dtype = self.exact if self.is_shared else self.dtype
            counts = to_device(torch.tensor(num_steps, dtype=dtype), self.device)

        def end(client: Client, numbers: Hyper, params: Tensors, count: Any) -> tuple[State, State]:
            carry = {"model": params} if self._program is None else unflat(params)
            return self._messages.read(self._algorithm.end(carry, client, count, numbers))

        params = {name: p.detach() for name, p in self.params.items()}
        more = self._measure_after(params) if self._measured.is_after else {}
        result: tuple[State, State] = self._in_lanes(
            end, (params, 0), (counts, 0 if isinstance(counts, Tensor) else None), more=more
        )
        return result

    def _measure_after(self, params: Tensors) -> Tensors:
        """What the lanes' clients measure after their steps, (H, …); nobody's lanes have the first one's."""
        found = []
        for lane, k in enumerate(self._ids):
            own = {name: p[lane] for name, p in params.items()}
            server = self._servers[lane // self._clients]
            kept = {s: {n: t[lane] for n, t in ts.items()} for s, ts in self.kept.items()}
            client = Client(server.params, server.state, kept, {name: t[lane] for name, t in self.facts.items()})
            numbers = self.plain_numbers()
            hyper = numbers if self.is_shared else {name: t[lane] for name, t in numbers.items()}
            carry = {"model": own} if self._program is None else unflat(own)
            found.append(self._measured.after(k, carry, client, hyper, self.buffers_of(lane)))
        return stacked(found + found[:1] * (self.size - len(found)))

    def buffers_of(self, lane: int) -> Tensors:
        """The model's state that is not trained, of a lane."""
        return {**self.frozen, **{name: b[lane] for name, b in self.buffers.items()}}

    @property
    def finishes(self) -> bool:
        """Whether what clients send and keep is asked of the algorithm, and not only how far their models have come."""
        return self._program is not None or sends_own(self._algorithm) or takes_all_messages(self._algorithm)

    def _in_lanes(
        self, of_client: Callable[..., Any], *given: tuple[Any, int | None], more: Mapping[str, Tensor] = {}
    ) -> Any:
        """Calls a function of one client, its numbers and what else is given, for all lanes.

        Args:
            given: with the dimension of the lanes, if it has one.
            more: facts beside those that the steps know, (H, …).
        """
        anchor = {name: self._shared([s.params[name] for s in self._servers]) for name in self.anchor}
        server = {
            state: {name: self._shared([s.state[state][name] for s in self._servers]) for name in tensors}
            for state, tensors in self.server.items()
        }

        def lane(kept: State, anchor: Tensors, server: State, facts: Tensors, numbers: Hyper, *more: Any) -> Any:
            return of_client(Client(anchor, server, kept, facts), numbers, *more)

        shared = None if self.is_shared else 0
        in_dims = (0, shared, shared, 0, shared, *(dim for _, dim in given))
        return torch.vmap(lane, in_dims=in_dims)(
            self.kept, anchor, server, {**self.facts, **more}, self.plain_numbers(), *(one for one, _ in given)
        )

    def _sum(self, lanes: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum over each run's lanes, in the dtype of the loop's sum.

        No run's lanes touch another's: infinite numbers stay where they are.
        """
        lanes = to_sum(lanes)
        rows = lanes.reshape(self._runs, self._clients, -1)
        weights = weights.to(lanes.dtype).view(self._runs, 1, self._clients)
        return torch.bmm(weights, rows).view(self._runs, *lanes.shape[1:])

    def _by_run(self, lanes: Tensor) -> Tensor:
        return lanes.view(self._runs, self._clients, *lanes.shape[1:])

    def _of_runs(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors) if self._runs > 1 else tensors[0].unsqueeze(0)

    def _shared(self, of_runs: list[Tensor]) -> Tensor:
        """What the lanes' runs share, of all lanes or (H, …)."""
        return of_runs[0] if self.is_shared else torch.stack(of_runs)[self._run_of]

    def _share(self, mine: Tensor, of_runs: list[Tensor]) -> None:
        """Gives the lanes what their runs share."""
        if self.is_shared:
            mine.copy_(of_runs[0])
        else:
            self._by_run(mine).copy_(self._of_runs(of_runs).unsqueeze(1))

    def set_numbers(self, numbers: Sequence[Numbers]) -> None:
        """Puts the numbers of each run, P, where steps find them."""
        if self.is_shared:
            hyper = numbers[0].hyper
            self.lr = float(hyper["lr"])
            self.numbers["lr"].fill_(self.lr)
            self.numbers |= {name: value for name, value in hyper.items() if name != "lr"}
            return
        rows = [[float(one.hyper[name]) for one in numbers] for name in self.numbers]
        rows += [[float(one.settings[name]) for one in numbers] for name in self.settings]
        values = torch.from_numpy(np.array(rows).repeat(self._clients, axis=1)).to(self.dtype)
        lanes = [*self.numbers.values(), *self.settings.values()]
        for mine, theirs in zip(lanes, to_device(values, self.device), strict=True):
            mine.copy_(theirs)

    def plain_numbers(self) -> dict[str, Any]:
        """The hyper-parameters as numbers of Python, where all lanes have the same."""
        return {**self.numbers, "lr": self.lr} if self.is_shared else self.numbers

    def stack_what_is_read(self, is_read: Callable[[Tensor], bool]) -> bool:
        """Gives memory for each lane to what lanes of a run share, where steps read it; says whether any was given."""
        if self.is_shared:
            return False
        found = False
        for tensors in (self.anchor, *self.server.values()):
            for name, tensor in tensors.items():
                if is_read(tensor) and tensor.stride(0) == 0 and self.size > 1:
                    tensors[name] = tensor.contiguous()
                    found = True
        return found
