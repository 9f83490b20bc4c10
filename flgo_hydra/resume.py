"""`python -m flgo_hydra.resume <folder>`: goes on with a sweep, or with a single run, from what its folder recorded.

Hydra writes the command into the folder (`multirun.yaml` of a sweep, `.hydra/hydra.yaml` of a run). It is given again,
in the folder where it was typed, with the output folder pinned; the study's identities see to it that nothing runs
twice.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra import __main__, streams
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.flags import name_and_value
from flgo_hydra.overrides import Override, override
from flgo_hydra.study.hydra_records import read_hydra
from flgo_hydra.study.space.kept_grid import KEEP_RECORD, grow_recorded

_USAGE = """\
usage: python -m flgo_hydra.resume FOLDER [OVERRIDE ...]

Goes on with the sweep, or the single run, in FOLDER: what is finished is not run again.

  hydra.sweeper.retry_failed=true   run failed points again too
  hydra.sweeper.rerun_changed=true  run points again whose code of yours has changed
  lr=0.05                           run that value as well, beside those that the sweep has of its key
  --only lr=0.05                    run that value alone for now: what the sweep is of stays as it was
  hydra.launcher.slots=4            anything else of the launcher may change as well

Other overrides replace recorded ones of the same key. Relative paths start where the command was first typed."""
_ONCE = (
    *("hydra.mode", "hydra.sweep.dir", "hydra.run.dir"),
    *("hydra.sweeper.retry_failed", "hydra.sweeper.rerun_changed"),
)
"""Recorded keys that are not given again: what they ask for is pinned, or was asked for once."""
_DIR = {"--config-dir", "-cd"}
_ONLY = "--only"
_NAME = {"--config-name", "-cn"}


@dataclass(frozen=True)
class Command:
    """Arguments of `python -m flgo_hydra`, and the folder they were typed in."""

    arguments: tuple[str, ...]
    cwd: Path


def main() -> None:
    """Runs the command line; exits as `python -m flgo_hydra` does."""
    streams.keep_going()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        sys.exit(streams.whole(0 if arguments else 2))
    try:
        command = read_command(Path(arguments[0]), arguments[1:])
        enter(command.cwd)
    except ValueError as error:
        sys.exit(streams.tell_error(str(error)))
    if _ONLY in arguments:
        os.environ[KEEP_RECORD] = "1"
    sys.argv[1:] = command.arguments
    __main__.main()


def enter(cwd: Path) -> None:
    """Changes to the folder where the command was typed: its relative paths start there."""
    if cwd == Path.cwd():
        return
    if cwd.is_dir():
        print(f"in {cwd}, where it was started:")
        os.chdir(cwd)
    else:
        print(f"{cwd}, where it was started, is gone: relative paths start in {Path.cwd()}.", file=sys.stderr)


def read_command(folder: Path, more: Sequence[str] = ()) -> Command:
    """Returns the command that goes on in `folder`.

    Args:
        more: overrides and flags that are added; an override replaces the recorded one of the same key.
    Raises:
        ValueError: there is no such folder, nothing that can go on in it, or something it needs is gone.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    sweep, run = folder / "multirun.yaml", folder / ".hydra" / "hydra.yaml"
    if sweep.is_file():
        recorded, pinned = read_hydra(sweep), ["-m", override("hydra.sweep.dir", str(folder))]
    elif run.is_file():
        recorded, pinned = read_hydra(run), [override("hydra.run.dir", str(folder))]
        if "MULTIRUN" in str(recorded["mode"]):
            raise ValueError(f"{folder} is one run of a sweep. Go on with the sweep: {folder.parent}.")
    else:
        raise ValueError(f"{folder} has neither multirun.yaml nor .hydra/hydra.yaml: no sweep, no run.{_near(folder)}")
    flags, overrides = _split([text for text in more if text != _ONLY])
    if sweep.is_file() and _ONLY not in more:
        overrides, told = grow_recorded(sweep, recorded["overrides"]["task"], overrides)
        for line in told:
            print(line)
    replaced = {Override.read(text).key for text in overrides}
    if replaced & {"hydra.sweep.dir", "hydra.run.dir"}:
        raise ValueError(f"The output folder is {folder}: it cannot be changed on the way.")
    given = [*recorded["overrides"]["hydra"], *recorded["overrides"]["task"]]
    kept = [text for text in given if Override.read(text).key not in {*_ONCE, *replaced}]
    cwd = Path(recorded["runtime"]["cwd"])
    return Command((*pinned[:-1], *_recorded_flags(recorded, flags), *flags, *kept, *overrides, pinned[-1]), cwd)


def _recorded_flags(recorded: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """The flags that chose configs, unless given anew: a user's own folder, a primary config of another name."""
    flags = []
    for source in recorded["runtime"]["config_sources"]:
        path = source["path"]
        if source["provider"] == "command-line" and not _DIR & set(given):
            if not Path(path).is_dir():
                raise ValueError(f"It was started with --config-dir {path}, which is gone: give --config-dir again.")
            flags += ["--config-dir", path]
        elif source["provider"] == "main" and not _is_ours(Path(path)):
            raise ValueError(
                f"It was started by another Hydra app, with configs in {path}: run that app's command again with "
                "the same `hydra.sweep.dir` or `hydra.run.dir`."
            )
    name = recorded["job"].get("config_name")
    if name and name != "config" and not _NAME & set(given):
        flags += ["--config-name", name]
    return flags


def _is_ours(folder: Path) -> bool:
    """Whether a primary config folder is our `conf/`, or was before the package moved."""
    return folder == conf_dir() or not folder.is_dir() or (folder / "hydra/sweeper/flgo_hydra.yaml").is_file()


def _split(more: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides. A folder of configs is meant where it is typed now."""
    flags: list[str] = []
    overrides: list[str] = []
    for text in more:
        one = Override.read(text)
        if text.startswith("-"):
            flags += [part for part in name_and_value(text) if part]
        elif flags and flags[-1].startswith("-") and not one.is_set and one.sign != "~":
            flags.append(text)
        else:
            overrides.append(text)
    for i, flag in enumerate(flags[:-1]):
        if flag in _DIR:
            flags[i + 1] = str(Path(flags[i + 1]).absolute())
    return flags, overrides


def _near(folder: Path) -> str:
    """The newest sweep below, where somebody named the folder that holds them."""
    below = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/multirun.yaml")]
    newest = max(below, key=lambda path: path.stat().st_mtime, default=None)
    return f" Did you mean {newest}?" if newest is not None else ""


if __name__ == "__main__":
    main()
