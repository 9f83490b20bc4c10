"""Whose a single run's folder is: asked before Hydra writes its record there, and held until the run has ended.

Two runs in one folder would leave the record of the one beside the result of the other. (A sweep's folder is held by
its sweeper.) It is one of Hydra's callbacks, since a job's own code is called when Hydra has written already.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from flgo_hydra import compose
from flgo_hydra.chosen import check_identities
from flgo_hydra.record.lock import Held, NoLockFile, holding
from flgo_hydra.record.paths import RunPaths, free_folder, is_by_the_second
from flgo_hydra.record.result import read_result
from flgo_hydra.record.schema import Defect, read_bytes
from flgo_hydra.streams import tell_error

_OF_SWEEP = re.compile(rb"^  mode: .*MULTIRUN", re.M)


class RunOwner(Callback):
    """Holds the folder of a single run; finds a free one where nobody has chosen it."""

    held: contextlib.ExitStack | None = None
    """of this process, which runs one at a time"""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Takes the folder; ends the command where somebody else has it."""
        RunOwner.let_go()
        folder = Path(str(config.hydra.run.dir))
        node: Any = OmegaConf.to_container(config.hydra.run, resolve=False)
        if is_by_the_second(str(node["dir"])):
            folder = free_folder(folder)
            compose.change_hydra(config, {"run.dir": str(folder)})
        compose.hide_passwords(config)  # before Hydra writes its record
        stack = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # a report may look, for a moment, whether it is held
            stack.enter_context(holding(RunPaths(folder).owner, wait_s=0.5))
        except Held as held:
            who = held.holder or "unknown"
            said = f"{folder} is in use by the run of process {who}. Wait for it, or choose another `hydra.run.dir`."
            raise SystemExit(tell_error(said)) from None
        except NoLockFile as error:
            raise SystemExit(tell_error(str(error))) from None
        except OSError:  # Hydra says what is wrong with the folder
            return
        why = why_not(folder, config)
        if why:
            stack.close()
            raise SystemExit(tell_error(why))
        RunOwner.held = stack

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        RunOwner.let_go()

    @classmethod
    def let_go(cls) -> None:
        """Also of a run that was interrupted, of which Hydra tells nobody."""
        if cls.held is not None:
            cls.held.close()
            cls.held = None


def why_not(folder: Path, config: DictConfig) -> str:
    """Why a single run cannot have a folder, whoever else has let go of it; empty where it can.

    Args:
        config: the run's, with Hydra's node.
    """
    if (folder / "multirun.yaml").exists():
        return f"{folder} is a sweep's folder. Choose another `hydra.run.dir`."
    record = folder / str(config.hydra.output_subdir)
    with contextlib.suppress(Defect):
        if _OF_SWEEP.search(read_bytes(record / "hydra.yaml") or b""):
            return (
                f"{folder} is one run of a sweep. Go on with the sweep (python -m flgo_hydra.resume {folder.parent}), "
                "or choose another `hydra.run.dir`."
            )
    paths = RunPaths(folder)
    fingerprint = _fingerprint(config)
    finished = read_result(paths)
    if finished is not None and fingerprint not in ("", finished.fingerprint):
        return f"{folder} holds the result of another config. Choose another folder (`hydra.run.dir=…`)."
    if finished is None and paths.checkpoint.is_file() and fingerprint and _is_another(record / "config.yaml", config):
        return (
            f"{folder} holds an unfinished run of another config. Choose another folder (`hydra.run.dir=…`), or delete "
            f"{paths.checkpoint.name} to start anew."
        )
    own = (paths.result, paths.rounds, paths.failure, paths.checkpoint, record)
    if os.path.lexists(paths.best_model) and not any(path.exists() for path in own):
        return (
            f"{folder} holds a {paths.best_model.name} and no run that wrote it, which would write over it. Choose "
            "another `hydra.run.dir`."
        )
    return ""


def _fingerprint(config: DictConfig) -> str:
    """Of what decides the numbers; empty where the config is not one of ours, or breaks a law."""
    try:
        check_identities(config, config.hydra)
        own = config.copy()
        with flag_override(own, ["readonly", "struct"], [False, False]):
            del own["hydra"]
        return compose.fingerprint(compose.to_conf(own)) if compose.is_ours(own) else ""
    except Exception:  # whoever runs it says what is wrong
        return ""


def _is_another(record: Path, config: DictConfig) -> bool:
    """Whether Hydra has recorded a config that decides other numbers; False where that cannot be read."""
    try:
        before: Any = OmegaConf.to_container(OmegaConf.create((read_bytes(record) or b"").decode()), resolve=False)
        now: Any = OmegaConf.to_container(config, resolve=False)
        return compose.decides_otherwise(before, now)
    except Exception:  # of a record that somebody has damaged
        return False
