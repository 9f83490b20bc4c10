"""One sweep's life: it is started, meets its misfortunes, and is gone on with until it is done.

The same command is given again, or `flgo_hydra.resume`, until one that met nothing has ended with status 0. What a
command's words ask for is done: `hydra.sweeper.retry_failed=true` is added where they name it, a command in backticks
(`scripts/rebuild_study …`) is given, a file that they name and that was damaged is moved away where the command alone
does not get further.
"""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import comparison
import watching
from commands import ROOT, Command, environment, resumed, signals_as_in_a_shell, typed
from control import Control
from misfortunes import KINDS, FewDescriptors, Misfortune, World
from sweeps import FOLDER, Sweep

MOST_IN_VAIN = 4
"""commands that met nothing and yet did not end with status 0"""
_MOST_COMMANDS = 16
_ORPHAN_S = 10.0
_MOST_COMMAND_S = 600.0
_TRACEBACK = "Traceback (most recent call last)"
_WORDS = re.compile(r"resume:|flgo_hydra\.resume|^error: |same command|is in use by|^interrupted$", re.MULTILINE)
_BACKTICKS = re.compile(r"`(scripts/rebuild_study [^`]+)`")


@dataclass
class Planned:
    """A misfortune to come."""

    kind: str
    misfortune: Misfortune
    moment: str
    share: float
    """of the sweep's records; below 0: as soon as it has a forkserver"""


@dataclass
class Life:
    """What has come of a sweep."""

    sweep: Sweep
    met: list[str] = field(default_factory=list)
    """kinds that struck"""
    told: list[str] = field(default_factory=list)
    """what happened, in order"""
    troubles: list[tuple[str, str]] = field(default_factory=list)
    """kind and text"""

    def trouble(self, kind: str, text: str) -> None:
        self.troubles.append((kind, text))
        self.told.append(f"TROUBLE {kind}: {text}")


def plan(rng: random.Random, sweep: Sweep, kinds: Sequence[str]) -> list[Planned]:
    """One to four misfortunes, in the order of their moments."""
    planned = []
    usable = [kind for kind in kinds if sweep.is_database or "database" not in kind]
    if sweep.is_database:
        usable = [kind for kind in usable if "journal" not in kind]
    if not sweep.is_packed:
        usable = [kind for kind in usable if "server" not in kind and "worker" not in kind and "jobs" not in kind]
    for kind in rng.sample(usable, min(len(usable), rng.randint(1, 4))):
        misfortune = KINDS[kind]()
        share = -1.0 if rng.random() < 0.15 else rng.uniform(0.0, 0.95)
        planned.append(Planned(kind, misfortune, rng.choice(misfortune.moments), share))
    return sorted(planned, key=lambda one: one.share)


def prepare(home: Path, cache: Path | None) -> None:
    home.mkdir(parents=True)
    (home / "tmp").mkdir()
    if cache is not None and cache.exists():
        shutil.copytree(cache, home / "cache")


def undisturbed(sweep: Sweep, home: Path, cache: Path | None) -> Path:
    """Runs the sweep alone, unless it was before; returns its folder.

    Raises:
        RuntimeError: it does not end well by itself.
    """
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        prepare(home, cache)
        command = Command(typed(sweep), home, environment(home, f"alone {sweep.key}", None), home / "output.log")
        if command.process.wait() != 0:
            raise RuntimeError(f"undisturbed it ends with {command.status}: {command.text()[-2000:]}")
        (home / "done").touch()
    return home / FOLDER


class Living:
    """Goes through a life. `run` returns what came of it."""

    def __init__(self, sweep: Sweep, planned: list[Planned], home: Path, alone: Path, rng: random.Random) -> None:
        self._sweep, self._to_come, self._home, self._rng = sweep, planned, home, rng
        self._alone = alone
        self._whole = watching.progress(alone)
        prepare(home, alone.parent / "cache")
        mark = f"{home.name}.{os.getpid()}.{time.monotonic_ns()}"
        control = Control(home / "page")
        self._env = environment(home, mark, control.path)
        self._more: list[str] = []
        self._world = World(sweep, home, home / FOLDER, control, rng, mark, self._start_second)
        self._active: list[tuple[Planned, float]] = []
        self._stopped_for: Planned | None = None
        self._num_commands = 0
        self.life = Life(sweep)

    def run(self) -> Life:
        num_in_vain = 0
        try:
            while self._num_commands < _MOST_COMMANDS:
                self._strike_due("start")
                num_met = len(self.life.met)
                is_clean = not self._active
                command = self._command()
                is_clean = is_clean and num_met == len(self.life.met)
                if command is None:
                    return self.life
                if command.status == 0 and is_clean and not self._to_come:
                    break
                is_at_rest = self._strike_due("rest", is_end=command.status == 0)
                if command.status == 0 and not is_at_rest:
                    for one in self._to_come:
                        self._tell(f"missed: {one.kind}")
                    self._to_come = []
                if command.status != 0:
                    num_in_vain += is_clean
                    if num_in_vain >= MOST_IN_VAIN:
                        tail = command.text()[-1500:]
                        self.life.trouble("never done", f"{num_in_vain} commands in vain, the last says: {tail}")
                        return self.life
                    self._heed(command.text(), num_in_vain)
            else:
                self.life.trouble("never done", f"{self._num_commands} commands")
                return self.life
            self._compare()
        finally:
            self._end()
        return self.life

    # one command

    def _command(self) -> Command | None:
        """Gives the command and sees it through; None where it hung."""
        world, number = self._world, self._num_commands
        self._num_commands += 1
        before = _finished(world.folder)
        touched = set(world.touched)
        wanted = [one.misfortune.output for one in self._to_come if one.misfortune.output != "file"]
        is_resumed = number > 0 and (world.folder / "multirun.yaml").is_file() and self._rng.random() < 0.3
        arguments = resumed(self._more) if is_resumed else typed(self._sweep, self._more)
        few = any(isinstance(one.misfortune, FewDescriptors) for one, _ in self._active)
        limits = FewDescriptors.limits if few else None
        log = self._home / f"output-{number}.log"
        self._tell(f"command {number}{' (resume)' if is_resumed else ''} {' '.join(self._more)}")
        command = Command(arguments, self._home, self._env, log, wanted[0] if wanted else "file", limits)
        self._more = []
        world.parent, world.terminal = command.pid, command.terminal
        is_whole = self._see_through(command)
        for one, _ in self._active:
            one.misfortune.undo(world)
        self._active = []
        if not is_whole:
            return None
        left = watching.wait_until_gone(world.mark, _ORPHAN_S)
        if left:
            self.life.trouble("orphans", "; ".join(f"{one.pid} {one.state} {one.command}" for one in left))
            self._end_processes()
        if world.terminal is not None:
            time.sleep(0.3)  # the reader's thread takes what is left
            os.close(world.terminal)
            world.terminal = None
        self._tell(f"command {number} ended with {command.status}")
        self._judge(command, before, touched)
        return command

    def _see_through(self, command: Command) -> bool:
        world = self._world
        stillness = watching.Stillness(world.mark, world.folder, command.log)
        begin, is_stopping = time.monotonic(), False
        while command.status is None:
            time.sleep(0.02)
            now = time.monotonic()
            for active in [one for one in self._active if one[1] <= now]:
                active[0].misfortune.undo(world)
                self._active.remove(active)
            if not is_stopping:
                for one in list(self._to_come):
                    if not self._is_due(one):
                        continue
                    if one.moment == "running":
                        self._strike(one)
                    else:  # it comes between two commands
                        number = self._rng.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
                        self._tell(f"stopped by {signal.Signals(number).name} for: {one.kind}")
                        world.send(command.pid, number)
                        self._stopped_for, is_stopping = one, True
                        break
            still_s = stillness.seconds()
            allowed_s = watching.STILL_S + (60 if self._active else 0)
            if still_s > allowed_s or now - begin > _MOST_COMMAND_S:
                watching.write_stacks(world.mark, self._home / "hang")
                self.life.trouble("hang", f"{still_s:.0f} s without a sign of life, {now - begin:.0f} s in all")
                return False
        return True

    def _is_due(self, one: Planned) -> bool:
        if one.share < 0:
            role = "server" if self._sweep.is_packed else "parent"
            return bool(self._world.pids(role)) and self._world.folder.exists()
        return watching.progress(self._world.folder) >= max(1, one.share * self._whole)

    def _strike_due(self, moment: str, is_end: bool = False) -> bool:
        """Strikes what comes between commands; returns whether anything did."""
        did = False
        for one in list(self._to_come):
            is_first, is_awaited = self._num_commands == 0, one is self._stopped_for
            if one.moment == moment and (is_end or is_awaited or (one.share < 0.3 if is_first else self._is_due(one))):
                did = self._strike(one) or did
                if one in self._to_come and (is_end or is_awaited or moment == "rest"):
                    self._to_come.remove(one)
                    self._tell(f"missed: {one.kind}")
        return did or (is_end and any(one.moment == "start" for one in self._to_come))

    def _strike(self, one: Planned) -> bool:
        try:
            done = one.misfortune.strike(self._world)
        except OSError as error:  # what it was to hit has gone under its hands
            self._tell(f"not quite {one.kind}: {error}")
            return False
        if done is None:
            return False
        self._to_come.remove(one)
        self.life.met.append(one.kind)
        self._tell(f"{one.kind} ({one.moment}): {done}")
        self._active.append((one, time.monotonic() + one.misfortune.most_s))
        for text in self._world.found:
            kind, _, rest = text.partition(": ")
            self.life.trouble(kind, rest)
        self._world.found = []
        return True

    # what is thought of it

    def _judge(self, command: Command, before: dict[str, bytes], touched: set[str]) -> None:
        text, status = command.text(), command.status
        assert status is not None
        _, *tracebacks = text.split(_TRACEBACK)
        # Under Hydra's own launcher a job's failure is printed by the same process, which then goes on to its summary.
        is_of_jobs = not self._sweep.is_packed and tracebacks and _WORDS.search(tracebacks[-1])
        for told in sorted({_in_short(one) for one in tracebacks if not is_of_jobs}):
            self.life.trouble("traceback", told)
        # A closed terminal sends SIGHUP, which ends a command that is still starting.
        signs = ("SIG", "killed", "stopped by", "terminal is closed")
        was_sent = any(sign in line for line in self.life.told for sign in signs)
        if status < 0 and not was_sent:
            self.life.trouble("died", f"by signal {-status}")
        if status > 0 and not _WORDS.search(text) and not any("closed" in line for line in self.life.told):
            self.life.trouble("no words", f"status {status}: {text[-1500:]}")
        for run, content in before.items():
            if run not in touched and run not in self._world.touched and _content(self._world.folder, run) != content:
                self.life.trouble("run twice", f"run {run} had a result before command {self._num_commands - 1}")

    def _heed(self, text: str, num_in_vain: int) -> None:
        """Does what the words ask for."""
        if "retry_failed=true" in text:
            self._more = ["hydra.sweeper.retry_failed=true"]
        for asked in _BACKTICKS.findall(text):
            words = [sys.executable, *shlex.split(asked)]
            done = subprocess.run([*words, "--force"], cwd=ROOT, env=self._env, capture_output=True, text=True)
            self._tell(f"{asked}: {done.returncode} {done.stdout[-200:]}{done.stderr[-500:]}")
        if num_in_vain >= 2:
            for path in [*self._world.damaged]:
                if path.name in text and path.exists():
                    self._tell(f"moved away, as it was named: {path.name}")
                    os.rename(path, path.with_name(f"{path.name}.moved-{num_in_vain}"))

    def _compare(self) -> None:
        try:
            alone = comparison.read(self._alone, self._sweep)
            found = comparison.read(self._world.folder, self._sweep, self._world.touched)
        except Exception as error:
            self.life.trouble("difference", f"it cannot be read: {error!r}")
            return
        for line in comparison.differences(found, alone, self._sweep, self._world.is_forgetful):
            self.life.trouble("difference", line)

    def _start_second(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            typed(self._sweep),
            cwd=self._home,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=signals_as_in_a_shell,
        )

    def _tell(self, text: str) -> None:
        done = watching.progress(self._world.folder) / max(1, self._whole)
        self.life.told.append(f"[{done:4.0%}] {text}")

    def _end(self) -> None:
        for one, _ in self._active:
            one.misfortune.undo(self._world)
        self._end_processes()
        if self._world.terminal is not None:
            os.close(self._world.terminal)
            self._world.terminal = None

    def _end_processes(self) -> None:
        for one in watching.marked(self._world.mark):
            self._world.send(one.pid, signal.SIGKILL)
        watching.wait_until_gone(self._world.mark, 5.0)


def _in_short(traceback: str) -> str:
    """Our own places in a traceback, and the error."""
    places = re.findall(r'File "[^"]*/(flgo_hydra/[^"]+)", line (\d+), in (\w+)', traceback)
    errors = [
        line for line in traceback.splitlines() if line and not line.startswith((" ", "[", "During", "The above"))
    ]
    return " > ".join(f"{file}:{line} {name}" for file, line, name in places) + f" > {errors[0] if errors else '?'}"


def _finished(folder: Path) -> dict[str, bytes]:
    """The results there are, by run folder."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/result.json") if path.is_file()}


def _content(folder: Path, run: str) -> bytes | None:
    path = folder / run / "result.json"
    return path.read_bytes() if path.is_file() else None
