"""Runs random sweeps, has random misfortune befall them, and compares what they come to with undisturbed ones.

    python scripts/chaos/soak.py --minutes 120 --seed 0         # as long as it is told
    python scripts/chaos/soak.py --sweeps 3                     # or so many
    python scripts/chaos/soak.py --seed 0 --only 17             # that one again, with what happened to it
    python scripts/chaos/soak.py --kinds 'SIGTERM,database'     # only misfortunes whose names have one of these in them

Each sweep (`sweeps.py`) meets one to four misfortunes (`misfortunes.py`), at moments that its own progress decides,
and its command is given again until it ends with status 0 (`life.py`). Then it is compared with the same sweep left
alone (`comparison.py`). Counted are differences, hangs, processes that live on, tracebacks, runs that were finished and
run again, commands that end without a word on how to go on, and sweeps that never end well. Prints a table by kind of
misfortune; of each sweep with a trouble the folder is kept and the command that repeats it is printed (the plan, not
the machine's timing). Exits with 1 where there was any.
"""

import argparse
import collections
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import sweeps  # noqa: E402
from life import Life, Living, plan, undisturbed  # noqa: E402
from misfortunes import KINDS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--sweeps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the sweep to begin with")
    parser.add_argument("--only", default="", metavar="N", help="that sweep again; several: N,M,…")
    parser.add_argument("--kinds", default="", help="parts of names of misfortunes, separated by commas")
    parser.add_argument("--folder", type=Path, default=None, help="where sweeps lie; else a temporary one")
    parser.add_argument("--list", action="store_true", help="prints the kinds of misfortune")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if any(part in kind for part in given.kinds.split(","))]
    if given.list:
        print("\n".join(kinds))
        return 0
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    lives: list[tuple[int, Life]] = []
    most = given.sweeps if given.sweeps is not None or end is not None else 1
    numbers = itertools.count(given.first) if most is None else range(given.first, given.first + most)
    try:
        for number in [int(text) for text in given.only.split(",")] if given.only else numbers:
            lives.append((number, live(given.seed, number, kinds, folder, given)))
            if end is not None and time.monotonic() > end:
                break
    except KeyboardInterrupt:
        pass
    print_table(lives)
    is_bad = any(life.troubles for _, life in lives)
    print(f"folders of sweeps with troubles: {folder}" if is_bad else "as undisturbed")
    return 1 if is_bad else 0


def live(seed: int, number: int, kinds: list[str], folder: Path, given: argparse.Namespace) -> Life:
    """Leads one sweep through its life, and tells of it."""
    rng = random.Random(f"{seed} {number}")
    sweep = sweeps.draw(rng)
    planned = plan(rng, sweep, kinds)
    home = folder / f"{seed}-{number}"
    shutil.rmtree(home, ignore_errors=True)
    begin = time.monotonic()
    try:
        alone = undisturbed(sweep, folder / "alone" / sweep.key, _any_cache(folder))
        life = Living(sweep, planned, home, alone, rng).run()
    except RuntimeError as error:
        life = Life(sweep)
        life.trouble("undisturbed", str(error))
    seconds = time.monotonic() - begin
    print(f"sweep {number}: {sweep.kind}, {', '.join(life.met) or 'nothing'}: {seconds:.0f} s", flush=True)
    if life.troubles or given.only:
        more = f" --kinds '{given.kinds}'" if given.kinds else ""
        print(f"  {' '.join(sweep.arguments)}", *life.told, sep="\n  ")
        print(f"  again: python scripts/chaos/soak.py --seed {seed} --only {number}{more}\n", flush=True)
    if life.troubles:
        (home / "told.txt").parent.mkdir(exist_ok=True)
        (home / "told.txt").write_text("\n".join([" ".join(sweep.arguments), *life.told]) + "\n")
    else:
        shutil.rmtree(home, ignore_errors=True)
    return life


def _any_cache(folder: Path) -> Path | None:
    """Built tasks of a sweep from before: building them anew is not what is tried."""
    return next(iter(sorted(folder.glob("alone/*/cache"))), None)


def print_table(lives: list[tuple[int, Life]]) -> None:
    met: collections.Counter[str] = collections.Counter()
    troubles: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    names = sorted({kind for _, life in lives for kind, _ in life.troubles})
    for _, life in lives:
        met.update(life.met)
        for kind in set(life.met):
            troubles[kind].update({name for name, _ in life.troubles})
    print(f"\n{'misfortune':40}{'times':>6}" + "".join(f"{name:>13}" for name in names))
    for kind, count in sorted(met.items()):
        print(f"{kind:40}{count:>6}" + "".join(f"{troubles[kind][name] or '':>13}" for name in names))
    totals = collections.Counter(name for _, life in lives for name in {kind for kind, _ in life.troubles})
    print(f"{'sweeps with it':40}{len(lives):>6}" + "".join(f"{totals[name]:>13}" for name in names))
    bad = [number for number, life in lives if life.troubles]
    print(f"{len(lives)} sweeps, {sum(met.values())} misfortunes of {len(met)} kinds, {len(bad)} sweeps with troubles")
    for number in bad:
        print(f"  --only {number}")


if __name__ == "__main__":
    sys.exit(main())
