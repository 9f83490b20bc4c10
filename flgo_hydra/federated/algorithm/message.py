"""What a client may send and keep: dicts of dicts by name, of tensors and numbers.

`finish` is a user's. What it returns is read in one place, whichever backend called it: a number (of Python or numpy)
becomes a tensor without dimensions, and a mistake is a sentence that says what must hold. All clients send the same
entries, or their weighted mean would not be one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Algorithm, State, Tensors
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import states_of_copy


def sends_own(algorithm: Algorithm) -> bool:
    """Whether clients send something else than the change of the model, or keep something."""
    own = type(algorithm)
    return own.finish is not Algorithm.finish or own.end is not Algorithm.end


class Messages:
    """Reads what an algorithm's `finish` returns.

    Args:
        params: of the model.
    """

    def __init__(self, algorithm: Algorithm, params: Tensors) -> None:
        self._name = type(algorithm).__name__
        self._device = next(iter(params.values())).device
        self._exact = torch.float32 if self._device.type == "mps" else torch.float64
        self._is_own = sends_own(algorithm)
        self._but = " (but those that are `private`)" if algorithm.private else ""
        self._needs_update = type(algorithm).update_server is Algorithm.update_server
        self._update = {name: p.shape for name, p in params.items() if name not in algorithm.private}
        self._kept = _form(states_of_copy(algorithm, params)[1]) if self._is_own else {}
        self._sent: dict[str, dict[str, torch.Size]] | None = None

    def read(self, returned: Any) -> tuple[State, State]:
        """The message and the client's new state. Also under `torch.vmap`.

        Raises:
            Refused: they are not what they must be.
        """
        if not self._is_own:
            sent, kept = returned
            return sent, kept
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise Refused(
                f"`finish` of {self._name} must return two things, the message and the client's new state, but "
                f"returned {_describe(returned)}."
            )
        sent = self._state(returned[0], "the message")
        kept = self._state(returned[1], "the client's new state")
        form = _form(sent)
        if self._needs_update and "update" not in form:
            raise Refused(
                f"The message that `finish` of {self._name} returns must have an entry `update`, the change of each "
                f"parameter, since `update_server` is FedAvg's; it has {_names(form)}."
            )
        if self._needs_update and form["update"] != self._update:
            raise Refused(
                f"`update` in the message that `finish` of {self._name} returns must have the model's trainable "
                f"parameters{self._but} and their shapes, since `update_server` is FedAvg's: "
                f"{_difference(self._update, form['update'])}."
            )
        if self._sent is None:
            self._sent = form
        elif form != self._sent:
            raise Refused(
                f"`finish` of {self._name} must send the same entries from every client, since their mean is taken: "
                f"{_difference(_flat(self._sent), _flat(form))}. Send zeros where there is nothing to say."
            )
        if _form(kept) != self._kept:
            raise Refused(
                f"The client's new state that `finish` of {self._name} returns must have the entries and shapes of "
                f"`init_client`: {_difference(_flat(self._kept), _flat(_form(kept)))}."
            )
        return sent, kept

    def _state(self, value: Any, what: str) -> State:
        if not isinstance(value, Mapping) or not all(isinstance(one, Mapping) for one in value.values()):
            wrong = value
            if isinstance(value, Mapping):
                key, wrong = next((key, one) for key, one in value.items() if not isinstance(one, Mapping))
                what = f"`{key}` in {what}"
            raise Refused(
                f"{what[0].upper()}{what[1:]} that `finish` of {self._name} returns must be a dict "
                f"by name, as in {{'update': {{'weight': tensor}}, 'count': {{'steps': num_steps}}}}, but got "
                f"{_describe(wrong)}."
            )
        return {key: {name: self._tensor(t, key, name) for name, t in ts.items()} for key, ts in value.items()}

    def _tensor(self, value: Any, key: str, name: str) -> Tensor:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, bool | int | float | np.number | np.bool_ | np.ndarray):
            return torch.as_tensor(value, dtype=self._exact, device=self._device)
        raise Refused(
            f"`{key}.{name}` that `finish` of {self._name} returns must be a tensor or a number, but got "
            f"{_describe(value)}."
        )


def _form(state: State) -> dict[str, dict[str, torch.Size]]:
    return {key: {name: t.shape for name, t in tensors.items()} for key, tensors in state.items()}


def _flat(form: Mapping[str, Mapping[str, torch.Size]]) -> dict[str, torch.Size]:
    """An entry without tensors counts too."""
    return {f"{key}.{name}": shape for key, ts in form.items() for name, shape in ts.items()} | {
        key: torch.Size() for key, ts in form.items() if not ts
    }


def _difference(wanted: Mapping[str, torch.Size], got: Mapping[str, torch.Size]) -> str:
    for name, shape in wanted.items():
        if name not in got:
            return f"`{name}` is missing"
        if got[name] != shape:
            return f"`{name}` has shape {tuple(got[name])}, not {tuple(shape)}"
    return f"`{next((name for name in got if name not in wanted), '')}` is one more"


def _names(form: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in form) or "none"


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
