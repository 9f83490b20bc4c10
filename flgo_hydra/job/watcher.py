"""What happens beside the training of a run: records, checkpoints, progress, and requests to end."""

import hashlib
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flgo_hydra import compose, own_code
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.option import OptionConf
from flgo_hydra.launch import reporter
from flgo_hydra.progress import Progress
from flgo_hydra.record import files
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import keep_rounds, read_rounds

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    import torch

    from flgo_hydra.federated.rounds import RunState, Status

_log = logging.getLogger("flgo_hydra")


class Watcher:
    """Writes rounds and checkpoints, shows progress, and passes on requests to stop."""

    def __init__(
        self,
        conf: Conf,
        paths: RunPaths,
        device: "torch.device",
        line: reporter.Reporter,
        is_interrupted: threading.Event,
        form: Mapping[str, Any] | None = None,
        data_sha256: str = "",
        kept: Callable[[], Mapping[str, Any]] = dict,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            form: what decides how numbers are rounded; a checkpoint of another one is not gone on with.
            kept: tells what has come to `form` since.
            names: of the model's state dict (`weights.names_of`); without them the server's own are written.
        """
        from flgo_hydra.record.checkpoint import CheckpointClock

        self._option: OptionConf = conf
        self._paths = paths
        self._device = device
        self._fingerprint = compose.fingerprint(conf)
        self._line = line
        self._is_interrupted = is_interrupted
        self._form = None if form is None else dict(form)
        self._kept_since = kept
        self._names = dict(names or {})
        self._kept = uuid.uuid4().hex
        self.data_sha256 = data_sha256
        self.code = own_code.behind(compose.parts(conf))
        """the user's own, and under `before` what the rounds before a checkpoint were trained with, if it was other"""
        self.prune_reason: str | None = None
        self.record: list[dict[str, float]] = []
        """the evaluated rounds, as lines of rounds.jsonl"""
        self._due = CheckpointClock(conf.checkpoint_interval, time.perf_counter)
        self.progress = Progress(conf.num_rounds, conf.eval_interval, sys.stdout)

    def resume(self, state: "RunState") -> None:
        """Goes on from the folder's checkpoint, if there is one: rounds recorded after it are run again."""
        from flgo_hydra.federated.patience import Patience
        from flgo_hydra.federated.training import ServerState
        from flgo_hydra.record.checkpoint import load_checkpoint, reading_rows

        files.remove_leftovers(self._paths.checkpoint)
        files.remove_leftovers(self._paths.best_model)
        is_of_sweep = self._paths.sweep is not None
        saved = load_checkpoint(self._paths.checkpoint, self._fingerprint, self._device, self.data_sha256, is_of_sweep)
        if saved is not None and saved["form"] != self._form:
            _log.warning("the run begins anew%s", _reason(saved["form"] or {}, self._form or {}))
            saved = None
        if saved is not None and saved["rounds_sha256"] != _hash_until(self._paths, saved["round_num"]):
            kept = f" (kept as {files.set_aside(self._paths.rounds).name})" if self._paths.rounds.exists() else ""
            _log.warning(
                "the run begins anew: %s%s has not the rounds any more that its checkpoint is after",
                self._paths.rounds,
                kept,
            )
            saved = None
        if saved is not None:
            state.server = ServerState(**saved["server"])
            with reading_rows(self._paths.checkpoint) as rows:
                state.clients.restore(saved["clients"], rows)
            state.round_num = saved["round_num"]
            state.patience = Patience(state.patience.monitor, **saved["patience"])
            state.best, state.last, state.seconds = saved["best"], saved["last"], saved["seconds"]
            if saved["best_model"] is not None:
                with files.replacing(self._paths.best_model, is_durable=False) as file:
                    file.write(saved["best_model"].cpu().numpy().tobytes())
            _log.info("going on after round %d", state.round_num)
            self._tell_other_code(saved["code"], state.round_num)
        self.record = keep_rounds(self._paths, state.round_num if saved is not None else -1)
        self._sha256 = hashlib.sha256(b"".join(map(files.line_of, self.record)))
        self._lines = files.JsonLines(self._paths.rounds)

    def require_record(self) -> None:
        """Before a result is written: what it stands on lies beside it. Raises CannotWrite."""
        self._lines.require_in_place()

    def tell_reads(self, names: Iterable[str]) -> None:
        """Says what the user's code has been seen to read, files and variables: it is a part of the code."""
        names = set(names) - self.code.get("reads", {}).keys() - self.code["files"].keys()
        if not names:
            return
        before = self.code.pop("before", None)
        self.code = own_code.with_reads(self.code, sorted(names))
        if before is not None:
            self.code["before"] = before

    def tell_kept(self, name: str) -> None:
        """Says that the user's metrics keep something between calls, which no checkpoint has."""
        from flgo_hydra.federated.backend.loop import KEPT_BY_PYTHON

        if name and self._form is not None and KEPT_BY_PYTHON not in self._form:
            self._form[KEPT_BY_PYTHON] = f"{name} of process {self._kept}"

    def _tell_other_code(self, before: dict[str, Any], round_num: int) -> None:
        """The rounds so far may have been trained with other code of the user's: then the result says so."""
        earlier = before.pop("before", [])
        changed = own_code.changed_since(before, self.code["files"])
        if changed:
            _log.warning("%s changed: rounds up to %d were trained with other code", ", ".join(changed), round_num)
            earlier = [*earlier, {**before, "last_round": round_num}]
        if earlier:
            self.code["before"] = earlier

    def record_with(self, state: "RunState") -> list[dict[str, float]]:
        """The evaluated rounds, the present one, which is not written yet, last."""
        return [*self.record, _line(state)]

    def evaluated(self, state: "RunState", is_best: bool) -> None:
        """Writes the round's line, shows it, and tells the launcher; keeps the model where it is the best."""
        line = _line(state)
        self.record.append(line)
        self._lines.append(line)
        self._sha256.update(files.line_of(line))
        if is_best and self._option.save_best:
            self._save_best_model(state)
        best = state.patience
        self.progress.show(state.round_num, state.last, best.best, best.best_round, best.monitor.metric)
        self._line.report(
            "round",
            round=state.round_num,
            num_rounds=self._option.num_rounds,
            best=best.best,
            best_round=best.best_round,
            monitor=asdict(best.monitor),
            metrics=state.last,
        )

    def finished_round(self, state: "RunState") -> "Status | None":
        """Writes a checkpoint where one is due; returns the status of a run that shall end here, else None."""
        from flgo_hydra.federated.rounds import Status

        self.prune_reason = self._line.prune_reason()
        if self.prune_reason is not None:
            return Status.PRUNED
        if state.round_num > 0 and self._due.is_due(state.round_num):
            self._due.timed(lambda: self.save(state))
        return Status.STOPPED if self._is_interrupted.is_set() or self._line.stop_requested() else None

    def save(self, state: "RunState") -> None:
        """Writes a checkpoint of the last finished round: all that the run goes on from, but for the rounds' lines."""
        from flgo_hydra.record.checkpoint import save_checkpoint

        # Before it: a checkpoint that outlives a loss of power finds the rounds that it is after, and its command.
        files.settle([self._paths.rounds, *self._paths.config], self._paths.sweep)
        content = {
            "server": vars(state.server),
            "clients": state.clients.export(),
            "round_num": state.round_num,
            "rounds_sha256": self._sha256.hexdigest(),
            "best_model": self._best_model(),
            "patience": {"best": state.patience.best, "best_round": state.patience.best_round},
            "best": state.best,
            "last": state.last,
            "seconds": state.seconds,
            "form": None if self._form is None else {**self._form, **self._kept_since()},
            "data_sha256": self.data_sha256,
            "code": self.code,
        }
        save_checkpoint(self._paths.checkpoint, self._fingerprint, content, state.clients.rows())

    def _best_model(self) -> "torch.Tensor | None":
        """The file of the best model so far, as bytes: before the run goes on, a later round may replace it."""
        import numpy as np
        import torch

        if not self._option.save_best or not self._paths.best_model.is_file():
            return None
        return torch.from_numpy(np.fromfile(self._paths.best_model, np.uint8))

    def _save_best_model(self, state: "RunState") -> None:
        from flgo_hydra.federated.weights import by_state_dict, dump_weights

        with files.replacing(self._paths.best_model, is_durable=False) as file:
            file.write(dump_weights(by_state_dict({**state.server.params, **state.server.buffers}, self._names)))


def _line(state: "RunState") -> dict[str, float]:
    """A line of rounds.jsonl."""
    return {"round": state.round_num, **state.last, "seconds": round(state.seconds, 6)}


def _hash_until(paths: RunPaths, round_num: int) -> str:
    """Of the lines of the rounds up to one."""
    lines = (files.line_of(line) for line in read_rounds(paths) if line["round"] <= round_num)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _reason(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`, not to mix two ways of rounding: backend was loop, is vmap`."""
    from flgo_hydra.federated.backend.loop import KEPT_BY_PYTHON

    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if KEPT_BY_PYTHON in keys:
        kept = str(now.get(KEPT_BY_PYTHON) or before[KEPT_BY_PYTHON]).partition(" of process ")[0]
        return f": it has `{kept}`, which Python keeps and no checkpoint has"
    changes = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys)
    return f", not to mix two ways of rounding: {changes}"
