"""Whose a single run's folder is: taken before Hydra writes its record there, and held until the run has ended.

Two runs in one folder would leave the record of the one beside the result of the other. (A sweep's folder is held by
its sweeper.) It is one of Hydra's callbacks, since a job's own code is called when Hydra has written already.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from flgo_hydra.record.lock import Held, holding
from flgo_hydra.record.paths import RunPaths, free_folder, is_by_the_second


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
            with flag_override(config.hydra.run, ["readonly", "struct"], [False, False]):
                config.hydra.run.dir = str(folder)
        stack = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # a report may look, for a moment, whether it is held
            stack.enter_context(holding(RunPaths(folder).owner, wait_s=0.5))
        except Held as held:
            print(
                f"error: {folder} is in use by the run of process {held.holder or 'unknown'}. Wait for it, or choose "
                "another `hydra.run.dir`.",
                file=sys.stderr,
            )
            raise SystemExit(1) from None
        except OSError:  # Hydra says what is wrong with the folder
            return
        RunOwner.held = stack

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        RunOwner.let_go()

    @classmethod
    def let_go(cls) -> None:
        """Also of a run that was interrupted, of which Hydra tells nobody."""
        if cls.held is not None:
            cls.held.close()
            cls.held = None
