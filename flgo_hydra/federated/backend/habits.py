"""What a model and an algorithm do beside computing, found out by a small round on copies of them.

Plain steps run whatever Python can say. A faster form does not: a recording repeats tensor operations only, and
clients side by side make one call of many. So before the first round a copy of the model takes a step on the largest
batch and one on the smallest, sends a message to a copy of the server, and is evaluated, and what has changed on the
way is looked at. What no backend can honour is refused here, in a sentence.
"""

import contextvars
import inspect
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flgo_hydra import own_code
from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.message import Messages
from flgo_hydra.federated.backend.beyond import nothing_changed_beyond
from flgo_hydra.federated.backend.python_state import PythonState
from flgo_hydra.federated.backend.tape import readers_noticed
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data import Data, Samples
from flgo_hydra.federated.evaluation import evaluate
from flgo_hydra.federated.randomness import generators_kept
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import Mean, ServerState, finish_round, states_of_copy

if TYPE_CHECKING:
    from flgo_hydra.federated.backend.loop import LoopBackend

TRIAL_LR = 0.01
"""The learning rate of all trials: what runs shall not depend on a run's own."""


@dataclass(frozen=True)
class Habits:
    """What was found."""

    why_plain: str = ""
    """why only plain steps do what the model and the algorithm do"""
    why_apart: str = ""
    """why clients side by side do not"""
    why_not_fused: str = ""
    """why the servers of several runs do not"""
    keeps: str = ""
    """what Python keeps from step to step, which no checkpoint has"""


def look(loop: "LoopBackend", sizes: list[int], server: ServerState, hyper: Hyper) -> Habits:
    """Finds out what the loop's model and algorithm do, and leaves no trace in them.

    Args:
        sizes: of the batches that the run takes.
    Raises:
        Refused: something that no backend can honour.
    """
    trial = _Trial(loop, sizes, server, hyper)
    found = Habits()
    with generators_kept(), nothing_changed_beyond() as beyond:
        try:
            found = contextvars.copy_context().run(trial.look)
        except Refused:
            raise
        except Exception as error:  # whatever it is, the first round will raise it again
            found = _plain(f"a trial step fails: {one_line(error)}")
    return _plain(str(beyond), found) if beyond else found


class _Called(Exception):
    pass


_REENTRANT = (
    "`torch.utils.checkpoint` with `use_reentrant=True` works with `.backward()` only, but gradients are taken with "
    "`torch.autograd.grad` here: set `use_reentrant=False`, which PyTorch recommends."
)


class _Trial:
    def __init__(self, loop: "LoopBackend", sizes: list[int], server: ServerState, hyper: Hyper) -> None:
        self._original = loop
        self._sizes = sizes
        self._given = server
        self._noticed: list[str] = []
        self._hyper: Hyper = {
            name: _noticed(value, name, self._noticed) for name, value in {**hyper, "lr": TRIAL_LR}.items()
        }
        self._found = Habits()

    def look(self) -> Habits:
        model, algorithm = self._original.model, self._original.step.algorithm
        own = PythonState.of_originals(model=model, algorithm=algorithm)
        if own.holds_a_part:
            return _plain(f"{own.holds_a_part} holds a part of the model, and they cannot be copied apart")
        if own.opaque:
            return _plain(f"`{own.opaque}` is shared with threads or processes")
        if own.peeks:
            return _plain(f"it asks for what Python alone knows (`{own.peeks}`)")
        if PythonState(algorithm=algorithm).asks_types:
            return _plain("it asks whether numbers are Python's")
        if self._original.has_users_code:
            _refuse_hooks(model)
        if any(p._backward_hooks for p in model.parameters()):
            return _plain("the model's parameters have hooks")
        try:
            loop = self._original.copy()
        except Exception as error:
            return replace(_plain(f"the model cannot be copied: {one_line(error)}"), keeps=own.generator)
        before = PythonState(model=loop.model, algorithm=loop.step.algorithm)
        if other := own.differs(before, without="_hooks["):  # of which torch makes new ones
            return replace(_plain(f"a copy of it has another `{other}`"), keeps=own.generator)
        noise, torch_noise = python_noise(), _TorchNoise(loop.data.x_train.device)
        keeps_draws = False
        try:
            self._try(loop)
            keeps_draws = own.has_filled_a_cache and torch_noise.has_moved
            changed = before.changed(PythonState(model=loop.model, algorithm=loop.step.algorithm))
        finally:
            own.put_back_outside()
        if keeps_draws:
            return _plain("a function's cache may keep what it has drawn", self._found)
        if python_noise() != noise:
            return _plain("it draws random numbers from Python or numpy", self._found)
        if changed:
            return replace(_plain(f"`{changed}` changes while it computes", self._found), keeps=changed)
        return self._found

    def _try(self, loop: "LoopBackend") -> None:
        server = copied(self._given)
        loop.load(server)
        flags = dict.fromkeys(loop.params, True)
        loop.model.train()
        _refuse_other_flags(loop.model, flags, "its `train()`")
        # Not zero: a client's state of zeros would hide what is done with it.
        state = {
            key: {name: torch.full_like(t, 1e-2) for name, t in ts.items()}
            for key, ts in states_of_copy(loop.step.algorithm, loop.params)[1].items()
        }
        client = Client(server.params, server.state, state)
        largest, smallest = max(self._sizes), min(self._sizes)
        calls = _Calls()
        with calls:
            self._pass(loop, _rows(loop.data, largest))
            loop.train_client([_rows(loop.data, largest)], client, self._hyper)
        if smallest < largest:
            try:
                loop.train_client([_rows(loop.data, smallest)], client, self._hyper)
            except Exception as error:  # a batch normalisation of one sample, say: the plain step will raise it again
                self._found = _plain(f"a step on {smallest} of its samples fails: {one_line(error)}", self._found)
        sent, kept = self._finish(loop, client)
        _refuse_changes(self._given, server, state, "`correct` or `finish`")
        del kept
        self._update_server(loop, server, sent)
        self._evaluate(loop)
        if self._noticed:
            self._found = _plain(
                f"it looks numbers up, compares, rounds or writes them (`hyper[{self._noticed[0]!r}]`)", self._found
            )
        if calls.reader:
            self._found = _plain(f"it reads numbers from tensors ({calls.reader})", self._found)
        elif calls.look_up and not self._found.why_apart:
            self._found = replace(self._found, why_apart=calls.look_up)

    def _pass(self, loop: "LoopBackend", rows: Tensor) -> None:
        """A forward pass, and what became of what it should not change."""
        x, y = loop.data.x_train[rows], loop.data.y_train[rows]
        params: Tensors = dict(loop.model.named_parameters())
        flags = _flags(loop.model)
        buffers = set(dict(loop.model.named_buffers()))
        values = _cloned(params)
        noise = _TorchNoise(x.device)
        with torch.enable_grad():
            loss = loop.loss(x, y)
        if any(node.name() == "CheckpointFunctionBackward" for node in _nodes(loss)):
            raise Refused(_REENTRANT)
        if noise.has_moved:
            why = "the model draws random numbers, each client's from a generator of its own"
            self._found = replace(self._found, why_apart=why)
        _refuse_new_parts(loop.model, params, buffers, flags)
        loop.check_buffers()
        changed = next((name for name, p in params.items() if not _equal(p.detach(), values[name])), "")
        if changed:
            self._found = _plain(f"the model changes its parameter `{changed}` in its forward pass", self._found)

    def _finish(self, loop: "LoopBackend", client: Client) -> tuple[State, State]:
        algorithm = loop.step.algorithm
        noise = _TorchNoise(loop.data.x_train.device)
        with torch.no_grad():
            sent, kept = Messages(algorithm, loop.params).read(algorithm.finish(loop.params, client, 2, self._hyper))
        if noise.has_moved:
            why = "`finish` draws random numbers, each client's from a generator of its own"
            self._found = replace(self._found, why_apart=why)
        return sent, kept

    def _update_server(self, loop: "LoopBackend", server: ServerState, sent: State) -> None:
        message = Mean()
        message.add(sent, 1.0)
        cohort = Cohort(np.zeros(1, np.int64), np.ones(1), 1.0, 1.0, 1)
        noise = _TorchNoise(loop.data.x_train.device)
        with torch.no_grad():
            after = finish_round(server, loop.step.algorithm, message.value(), {}, cohort, self._hyper)
        if noise.has_moved:
            self._found = replace(self._found, why_not_fused="`update_server` draws random numbers, each run's own")
        name = type(loop.step.algorithm).__name__
        _refuse_another_form(name, "model", {"params": self._given.params}, {"params": after.params})
        _refuse_another_form(name, "state of the server", self._given.state, after.state)

    def _evaluate(self, loop: "LoopBackend") -> None:
        some = loop.data.valid if len(loop.data.valid.x) else loop.data.test
        evaluate(loop.model, loop.data, Samples(some.x[:2].clone(), some.y[:2].clone(), some.weights[:2].clone()))


class _Noticed:
    """Notices that a number is looked up in a table, compared or written: a tensor in its place would be found or read
    otherwise."""

    name: str
    noticed: list[str]

    def _notice(self) -> None:
        self.noticed.append(self.name)

    def __hash__(self) -> int:
        self._notice()
        return super().__hash__()

    def __str__(self) -> str:
        self._notice()
        return super().__str__()

    def __repr__(self) -> str:
        self._notice()
        return super().__repr__()

    def __format__(self, form: str) -> str:
        self._notice()
        return super().__format__(form)

    def __round__(self, digits: Any = None) -> Any:
        self._notice()
        return round(self.__class__.__mro__[2](self), digits)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)

    def __bool__(self) -> bool:
        self._notice_value()
        return super().__ne__(0)

    def _notice_value(self) -> None:
        """Which way the code goes follows from the number: the learning rate is another one than in the trial."""
        if self.name == "lr":
            self._notice()

    def __deepcopy__(self, memo: Any) -> "_Noticed":
        return self


class _Number(_Noticed, float):
    pass


class _WholeNumber(_Noticed, int):
    pass


def _derives(method: str, kind: type) -> Callable[..., Any]:
    """What is computed from a number that is noticed is noticed, too."""

    def compute(self: Any, *others: Any) -> Any:
        found = getattr(kind, method)(self, *others)
        return found if found is NotImplemented else _noticed(found, self.name, self.noticed)

    return compute


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _method in (f"__{_name}__", f"__r{_name}__"):
        setattr(_Number, _method, _derives(_method, float))
        setattr(_WholeNumber, _method, _derives(_method, int))
for _method in ("__neg__", "__abs__", "__pos__"):
    setattr(_Number, _method, _derives(_method, float))
    setattr(_WholeNumber, _method, _derives(_method, int))


def _decides(method: str, kind: type) -> Callable[..., Any]:
    """What is made of a number that is no number computed with: the code goes one way or another."""

    def compute(self: Any, *others: Any) -> Any:
        self._notice_value()
        return getattr(kind, method)(self, *others)

    return compute


for _name in ("lt", "le", "gt", "ge", "eq", "ne", "int", "floor", "ceil", "trunc", "divmod", "rdivmod"):
    for _class, _kind in ((_Number, float), (_WholeNumber, int)):
        setattr(_class, f"__{_name}__", _decides(f"__{_name}__", _kind))
for _name in ("is_integer", "as_integer_ratio", "hex"):
    setattr(_Number, _name, _decides(_name, float))


def _noticed(value: Any, name: str, noticed: list[str]) -> Any:
    """The same number, which adds its name to `noticed` when it is looked up or written."""
    kind = {float: _Number, int: _WholeNumber}.get(type(value))
    if kind is None:
        return value
    number = kind(value)
    number.name, number.noticed = name, noticed
    return number


class _Calls(TorchFunctionMode):
    """Notices calls that a faster form does not repeat, whatever they compute at the moment."""

    _LOOK_UPS = (functional.embedding, functional.embedding_bag, torch.embedding, torch.embedding_bag)

    def __init__(self) -> None:
        super().__init__()
        self.reader = ""
        """how a tensor's numbers leave torch"""
        self.look_up = ""
        """what a table of embeddings does with its gradient that `torch.vmap` does not"""

    def __enter__(self) -> "_Calls":
        # Within hooks of the backward pass there is no mode.
        self._readers = readers_noticed(self._read)
        self._readers.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._readers.__exit__(*exception)

    def _read(self, name: str) -> None:
        self.reader = self.reader or name

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS and any(isinstance(t, list | tuple) and _has_tensor(t) for t in (*args, *kwargs.values())):
            self._read(func.__name__)
        if func in self._LOOK_UPS and not self.look_up:
            self._look_at_table(func, args, kwargs)
        return func(*args, **kwargs)

    def _look_at_table(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        given = dict(zip(_ARGUMENTS[func], args, strict=False)) | kwargs
        if given.get("padding_idx") not in (None, -1) or (func in _FUNCTIONALS and given.get("padding_idx") == -1):
            self.look_up = "an embedding has a `padding_idx`, which torch.vmap does not know"
        elif given.get("scale_grad_by_freq"):
            self.look_up = "an embedding has `scale_grad_by_freq`, which counts over a batch"
        elif given.get("sparse"):
            self.look_up = "an embedding has sparse gradients"


_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)
"""Given a list of tensors they read its numbers."""


def _has_tensor(items: Any) -> bool:
    return any(isinstance(item, Tensor) or (isinstance(item, list | tuple) and _has_tensor(item)) for item in items)


_FUNCTIONALS = (functional.embedding, functional.embedding_bag)
_OF_TABLE = ("padding_idx", "scale_grad_by_freq", "sparse")
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    functional.embedding: ("input", "weight", "padding_idx", "max_norm", "norm_type", *_OF_TABLE[1:]),
    torch.embedding: ("weight", "input", *_OF_TABLE),
    functional.embedding_bag: tuple(inspect.signature(functional.embedding_bag).parameters),
    torch.embedding_bag: (
        *("weight", "input", "offsets", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights"),
        *("include_last_offset", "padding_idx"),
    ),
}


def _plain(why: str, found: Habits | None = None) -> Habits:
    """Only plain steps will do."""
    found = found or Habits()
    return replace(found, why_plain=found.why_plain or why, why_apart=found.why_plain or why)


def _nodes(loss: Tensor) -> set[Any]:
    """Of the graph that the gradients are taken from."""
    found: set[Any] = set()
    to_see = [loss.grad_fn]
    while to_see:
        node = to_see.pop()
        if node is not None and node not in found:
            found.add(node)
            to_see.extend(before for before, _ in node.next_functions)
    return found


def _refuse_hooks(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if getattr(p, "_post_accumulate_grad_hooks", None):
            raise Refused(
                f"`{name}` has a hook that runs when `.backward()` has added to `.grad` "
                "(`register_post_accumulate_grad_hook`), but gradients are taken with `torch.autograd.grad` here, and "
                "it would never run. Use `register_hook`, or change the gradient in the algorithm's `correct`."
            )
    name = _hooked_where_gradients_add_up(model)
    if name:
        raise Refused(
            f"`{name}` has a hook at the node that adds to `.grad` (`AccumulateGrad`), but gradients are taken with "
            "`torch.autograd.grad` here, and it would never run. Use the parameter's `register_hook`, or change the "
            "gradient in the algorithm's `correct`."
        )


def _hooked_where_gradients_add_up(model: nn.Module) -> str:
    """The name of a parameter whose hooks run only in `.backward()`, or nothing; none of them runs.

    Torch does not tell of such hooks, so gradients of zero are added up, and the first call of a user's function is
    ended before it begins.
    """

    def end(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back.f_code.co_name if frame.f_back is not None else ""
        if event == "call" and "run_backward" in caller and not own_code.is_installed(frame.f_code.co_filename):
            raise _Called

    for name, p in model.named_parameters():
        if not p.requires_grad or p._backward_hooks or p.layout != torch.strided:
            continue
        kept, profiler = p.grad, sys.getprofile()
        with torch.enable_grad():
            same = p.view_as(p)
        p.grad = None
        sys.setprofile(end)
        try:
            torch.autograd.backward(same, torch.zeros_like(same))
        except _Called:
            return name
        finally:
            sys.setprofile(profiler)
            p.grad = kept
    return ""


def _rows(data: Data, size: int) -> Tensor:
    """A batch from all over the training samples."""
    n = len(data.x_train)
    return (torch.arange(size, device=data.x_train.device) * max(1, n // size)) % n


def _flags(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def _refuse_new_parts(model: nn.Module, params: Tensors, buffers: set[str], flags: dict[str, bool]) -> None:
    now = dict(model.named_parameters())
    for name in sorted({*params, *now}):
        if now.get(name) is not params.get(name):
            raise Refused(
                f"The model must make its parameters before it trains, but its forward pass makes or drops `{name}`: "
                "make it in `__init__`."
            )
    _refuse_other_flags(model, flags, "its forward pass")
    for name in sorted(buffers ^ set(dict(model.named_buffers()))):
        raise Refused(
            f"The model must register its buffers before it trains, since the clients' are averaged, but its forward "
            f"pass makes or drops `{name}`: give it its shape in `__init__`, or keep it as a plain attribute."
        )


def _refuse_other_flags(model: nn.Module, flags: dict[str, bool], by: str) -> None:
    now = _flags(model)
    for name, flag in flags.items():
        if now[name] != flag:
            raise Refused(
                f"Which parameters are trained must be fixed before training, but the model sets `requires_grad` of "
                f"`{name}` in {by}: set it in `__init__`."
            )


def _refuse_changes(given: ServerState, server: ServerState, state: State, by: str) -> None:
    parts = [("client.anchor", given.params, server.params)]
    parts += [(f"client.server['{key}']", ts, server.state[key]) for key, ts in given.state.items()]
    constant = {key: {name: torch.full_like(t, 1e-2) for name, t in ts.items()} for key, ts in state.items()}
    parts += [(f"client.state['{key}']", ts, state[key]) for key, ts in constant.items()]
    for what, before, after in parts:
        for name, tensor in before.items():
            if not _equal(tensor, after[name]):
                raise Refused(
                    f"The algorithm must not change what a client is given, which others are given too, but {by} "
                    f"changes `{what}` (`{name}`) in place: compute a new tensor and return it."
                )


def _refuse_another_form(algorithm: str, what: str, before: State, after: Any) -> None:
    for key, tensors in before.items():
        for name, tensor in tensors.items():
            got = after.get(key, {}).get(name) if isinstance(after, dict) else None
            if not isinstance(got, Tensor) or got.shape != tensor.shape:
                found = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else repr(got)
                raise Refused(
                    f"`update_server` of {algorithm} must return the next {what} with the same names and shapes: "
                    f"`{name}` has shape {tuple(tensor.shape)}, but got {found}."
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _cloned(tensors: Tensors) -> Tensors:
    return {name: t.detach().clone() for name, t in tensors.items()}


def copied(server: ServerState) -> ServerState:
    """The same numbers in tensors of their own."""
    state = {key: _cloned(tensors) for key, tensors in server.state.items()}
    return ServerState(_cloned(server.params), _cloned(server.buffers), state)


class _TorchNoise:
    """Where torch's generators stand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states = self._now()

    def _now(self) -> list[Tensor]:
        of_device = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.default_generator.get_state(), *of_device]

    @property
    def has_moved(self) -> bool:
        """Whether something has been drawn since."""
        return not all(torch.equal(a, b) for a, b in zip(self._states, self._now(), strict=True))


def python_noise() -> tuple[Any, ...]:
    """The state of Python's and numpy's generators."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), tuple(rest)


def one_line(error: Exception) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
