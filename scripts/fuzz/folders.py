"""Damages a finished sweep's folder at random, and has it reported, rebuilt and gone on with.

    python scripts/fuzz/folders.py                       # 200 folders, each reported and rebuilt; every tenth resumed
    python scripts/fuzz/folders.py --cases 1000 --resume-every 5 --seed 3
    python scripts/fuzz/folders.py --only 417            # that one again, with what it printed

Each case is a copy of a small sweep (a grid with one run that failed) with one to four mutations: bytes, lines, values
and digits changed, files cut, emptied, deleted, swapped between runs, or replaced by folders, links and pipes. Counted
are: errors that are no sentence of ours (a traceback), what does not end within a minute, and wrong numbers: a run that
is shown as completed with another best loss than the undamaged one has, or that a resumed sweep ends with. Prints a
table of what was done by kind, and exits with 1 where anything was found.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

SWEEP = (
    *("-m", "num_rounds=3", "model=logistic", "task.num_clients=5", "num_steps=1", "device=cpu"),
    *("lr=0.1,0.01,1000", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.launcher.slots=2"),
)
MOST_S = 60
MOST_BYTES = 8 * 2**30
_JSON = (
    *(None, True, -1, 0, 3, 1.5, "x", "", [], {}, [1], {"a": 1}, 10**30, "1", "nan"),
    *("\x1b[31m", "=1+1", "a\nb", "../..", "/"),
)


class TooLong(BaseException):
    """No error that who reads a file expects."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume-every", type=int, default=10, metavar="N", help="0: never")
    parser.add_argument("--only", type=int, default=None, metavar="CASE")
    given = parser.parse_args()
    # what would fill the memory is a trouble to be told, not the end of this
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with tempfile.TemporaryDirectory() as root, contextlib.chdir(root):
        os.environ["XDG_CACHE_HOME"] = f"{root}/cache"
        subprocess.run([sys.executable, "-m", "flgo_hydra", *SWEEP], check=False, capture_output=True)
        whole = Path(root, "sweep")
        expected = losses(whole)
        assert len(expected) == 6, "the sweep itself has failed"
        counts: collections.Counter[str] = collections.Counter()
        found = 0
        for case in range(given.cases) if given.only is None else [given.only]:
            seed = f"{given.seed} {case}"
            folder = Path(root, "case", "sweep")
            done = damaged(whole, folder, seed)
            counts.update(kind for kind, _ in done)
            troubles = try_all(folder, expected, given)
            if given.resume_every and case % given.resume_every == 0:
                damaged(whole, folder, seed)
                troubles += resumed(folder, expected, given)
            for trouble in troubles:
                found += 1
                what = "; ".join(f"{kind} {path}" for kind, path in done)
                print(f"case {case} (--seed {given.seed}): {what}\n{trouble}\n", flush=True)
    print(f"{'what was done':28}{'times':>6}")
    for kind, count in sorted(counts.items()):
        print(f"{kind:28}{count:>6}")
    print(f"{given.cases if given.only is None else 1} folders: {found} troubles")
    return 1 if found else 0


def losses(folder: Path) -> dict[str, object]:
    """What each point of a sweep has come to, by its overrides."""
    found = {}
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        option = result["option"]
        found[f"lr={option['lr']} seed={option['seed']}"] = (result["status"], result["best_valid_loss"])
    return found


def try_all(folder: Path, expected: dict[str, object], given: argparse.Namespace) -> list[str]:
    return [
        *called("report", lambda: report(folder, expected), given),
        *called("report --plot", lambda: command(["sweep", "--plot", "valid_loss"], folder.parent), given),
        *called("rebuild", lambda: rebuild(folder), given),
    ]


def called(name: str, call: Callable[[], str | None], given: argparse.Namespace) -> Iterator[str]:
    """What is wrong with a call, if anything."""

    def too_long(*_: object) -> None:
        raise TooLong(f"not done after {MOST_S} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MOST_S)
    logging.disable()
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            trouble = call()
    except SystemExit:
        trouble = None
    except BaseException:
        trouble = traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    if given.only is not None:
        print(f"-- {name}\n{out.getvalue()}")
    if "Traceback" in out.getvalue():
        trouble = out.getvalue()
    if trouble:
        yield f"{name}: {trouble}"


def command(arguments: list[str], cwd: Path) -> None:
    from flgo_hydra.report.command import main as report_main

    with contextlib.chdir(cwd):
        report_main(arguments)


def report(folder: Path, expected: dict[str, object]) -> str | None:
    from flgo_hydra.report.runs import read_runs

    command(["sweep"], folder.parent)
    try:
        runs, _ = read_runs([folder])
    except ValueError:
        return None
    for run in runs:
        if run.row.status in ("completed", "diverged"):
            point = f"lr={run.values.get('lr')} seed={run.values.get('seed')}"
            best = None if run.row.best_valid_loss == float("inf") else run.row.best_valid_loss
            if expected.get(point) != (run.row.status, best):
                return f"{run.name}: {point} {run.row.status} {best}, not {expected.get(point)}"
    return None


def rebuild(folder: Path) -> None:
    from flgo_hydra.study.rebuild import main as rebuild_main

    rebuild_main([str(folder), "--force"])


def resumed(folder: Path, expected: dict[str, object], given: argparse.Namespace) -> Iterator[str]:
    command = [sys.executable, "-m", "flgo_hydra.resume", str(folder), "hydra.sweeper.retry_failed=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * MOST_S, cwd=folder.parent.parent)
    except subprocess.TimeoutExpired as late:
        yield f"resume: not done after {2 * MOST_S} s\n{late.stdout}\n{late.stderr}"
        return
    if given.only is not None:
        print(f"-- resume ({done.returncode})\n{done.stdout}{done.stderr}")
    said = done.stdout + done.stderr
    if "Traceback" in said or done.returncode not in (0, 1, 2):
        yield f"resume ({done.returncode}): {said}"
    if re.search(r"^error: ", done.stderr, re.M) is None:
        now = losses(folder)
        wrong = {point: value for point, value in now.items() if value != expected.get(point)}
        missing = expected.keys() - now.keys()
        if wrong or missing:
            yield f"resume: wrong {wrong}, missing {missing}\n{said}"


# what is done to a folder


def damaged(whole: Path, folder: Path, seed: str) -> list[tuple[str, str]]:
    """A copy of a sweep with a few mutations, the same for the same seed; returns them."""
    rng = random.Random(seed)
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    return [damage(folder, rng) for _ in range(rng.randint(1, 4))]


def damage(folder: Path, rng: random.Random) -> tuple[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.stat().st_size < 2**24]  # not one that was blown up before
    files.sort()
    path = rng.choice(files)
    if rng.random() < 0.5:  # those that decide
        own = [one for one in files if one.name in ("result.json", "rounds.jsonl", "multirun.yaml", "study.journal")]
        path = rng.choice(own or files)
    kind = rng.choice(list(KINDS))
    KINDS[kind](path, files, rng)
    return kind, str(path.relative_to(folder))


def flip(path: Path, _: list[Path], rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _i in range(rng.randint(1, 8)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def change_digit(path: Path, _: list[Path], rng: random.Random) -> None:
    content = path.read_bytes()
    digits = [match.start() for match in re.finditer(rb"[0-9]", content)]
    if digits:
        at = rng.choice(digits)
        path.write_bytes(content[:at] + b"%d" % rng.randrange(10) + content[at + 1 :])


def change_value(path: Path, _: list[Path], rng: random.Random) -> None:
    """Another value of some kind in the place of one, in JSON; else a digit."""
    lines = path.read_text(errors="replace").splitlines()
    whole = path.suffix == ".json"
    at = rng.randrange(len(lines)) if lines else 0
    try:
        value = json.loads("\n".join(lines) if whole else lines[at])
        inner = value
        while isinstance(inner, dict | list) and inner:
            key = rng.choice(list(inner) if isinstance(inner, dict) else list(range(len(inner))))
            if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.6:
                inner = inner[key]
                continue
            inner[key] = rng.choice(_JSON)
            break
    except (ValueError, IndexError):
        return change_digit(path, _, rng)
    path.write_text(json.dumps(value) if whole else "\n".join([*lines[:at], json.dumps(value), *lines[at + 1 :], ""]))


def insert_line(path: Path, _: list[Path], rng: random.Random) -> None:
    lines = path.read_bytes().split(b"\n")
    texts = [
        b'{"kind": "end"}',
        b'{"round": "x"}',
        b"[1]",
        b'{"round": 1e400}',
        b"\0" * 100,
        b"- lr=5",
        b"x: [",
        b"&a *a",
    ]
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(texts))
    path.write_bytes(b"\n".join(lines))


def cut(path: Path, _: list[Path], rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def zeros(path: Path, _: list[Path], rng: random.Random) -> None:
    """The size that it had, and nothing in it: what a file system leaves after a loss of power."""
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path, files: list[Path], rng: random.Random) -> None:
    others = [one for one in files if one.name == path.name and one != path] or files
    other = rng.choice(others)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def replaced(make: Callable[[Path], object]) -> Callable[[Path, list[Path], random.Random], None]:
    def do(path: Path, _: list[Path], rng: random.Random) -> None:
        path.unlink()
        make(path)

    return do


def delete_folder(path: Path, _: list[Path], rng: random.Random) -> None:
    if path.parent.name != "sweep":
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def rename_folder(path: Path, _: list[Path], rng: random.Random) -> None:
    if path.parent.name != "sweep":
        name = rng.choice(["old", "77", ".x", "a b"])
        if not path.parent.with_name(name).exists():
            path.parent.rename(path.parent.with_name(name))


KINDS: dict[str, Callable[[Path, list[Path], random.Random], None]] = {
    "bits flipped": flip,
    "a digit changed": change_digit,
    "a value changed": change_value,
    "a line put in": insert_line,
    "cut": cut,
    "zeros": zeros,
    "emptied": lambda path, _, rng: path.write_bytes(b"") and None,
    "garbage": lambda path, _, rng: path.write_bytes(rng.randbytes(rng.randrange(5000))) and None,
    "swapped": swap,
    "deleted": replaced(lambda path: None),
    "a folder in its place": replaced(Path.mkdir),
    "a link to nowhere": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "a link to /": replaced(lambda path: path.symlink_to("/")),
    "a link to /dev/zero": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a pipe": replaced(os.mkfifo),
    "a terabyte of nothing": lambda path, _, rng: os.truncate(path, 2**40),
    "its folder deleted": delete_folder,
    "its folder renamed": rename_folder,
}


if __name__ == "__main__":
    sys.exit(main())
