"""Damages files of every kind that flgo_hydra reads, and has each read in a process with little memory and an alarm.

    python scripts/fuzz/inputs.py                                # 1000 cases
    python scripts/fuzz/inputs.py --cases 5000 --seed 3 --kinds npz,cifar
    python scripts/fuzz/inputs.py --only "npz 417"               # that one again, with what it said

A case is a small valid file with some mutations (bits flipped, cut, lengths in headers made huge, other encodings), one
that was made to do harm (nested lists and aliases, zip bombs, object arrays, pickles that call functions or hand NumPy
states with addresses), or something in its place (a folder, a pipe, a link to /, to itself, to a device, a terabyte of
nothing). Reading may accept a file, or refuse it with a sentence of ours. A traceback of anything else, an end by a
signal, a file that a crafted one has had made, and what does not end, are faults. Prints a table, and exits with 1
where there are any.
"""

import argparse
import collections
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 3 * 2**30
MOST_S = 20
OUTCOMES = ("accepted", "refused", "traceback", "killed", "hang", "ran code")
_ACCEPTED, _REFUSED, _TRACEBACK, _HARM = 0, 3, 4, 5
Change = Callable[[Path, random.Random], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ",".join(KINDS))
    parser.add_argument("--only", metavar="CASE", help="a kind and a number, as they are printed")
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    cases = [(kinds[i % len(kinds)], i) for i in range(given.cases)]
    if given.only:
        kind, number = given.only.split()
        cases = [(kind, int(number))]
    import torch  # noqa: F401  # once, for all children

    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in dict.fromkeys(kinds)}
    with tempfile.TemporaryDirectory() as root:
        whole = {kind: KINDS[kind][0](Path(root, f"whole-{kind}")) for kind in {kind for kind, _ in cases}}
        for kind, number in cases:
            outcome, done, said = try_one(kind, whole[kind], Path(root, "case"), f"{given.seed} {kind} {number}")
            counts.setdefault(kind, collections.Counter())[outcome] += 1
            if outcome not in OUTCOMES[:2] or given.only:
                print(f"--only '{kind} {number}' --seed {given.seed}: {done}: {outcome}\n{said}", flush=True)
    print(f"{'file':18}{'tried':>7}" + "".join(f"{name:>11}" for name in OUTCOMES))
    for kind, count in counts.items():
        print(f"{kind:18}{count.total():>7}" + "".join(f"{count[name]:>11}" for name in OUTCOMES))
    return int(any(count[name] for count in counts.values() for name in OUTCOMES[2:]))


def try_one(kind: str, whole: Path, folder: Path, seed: str) -> tuple[str, str, str]:
    """Makes a case and has it read. Returns the outcome, what was done to the file, and what was said of it."""
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    _, name, read, crafted = KINDS[kind]
    target = folder / name
    mark = folder / "it ran"
    if crafted and rng.random() < 0.4:
        made = rng.choice(crafted)
        made(target, mark)
        done = made.__name__
    else:
        changes = [rng.choice(list(CHANGES)) for _ in range(rng.choice((1, 1, 2, 3)))]
        for change in changes:
            if target.is_file() and not target.is_symlink() and target.stat().st_size < 2**24:
                CHANGES[change](target, rng)
        done = ", ".join(changes)
    with tempfile.TemporaryFile("w+") as said:
        status = in_child(lambda: read(folder), folder, said)
        said.seek(0)
        text = said.read(5000)
    if mark.exists():
        return "ran code", done, text
    if os.WIFSIGNALED(status):
        name = "hang" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
        return name, done, f"{signal.Signals(os.WTERMSIG(status)).name} {text}"
    code = os.WEXITSTATUS(status)
    return {_ACCEPTED: "accepted", _REFUSED: "refused"}.get(code, "traceback"), done, text


def in_child(read: Callable[[], object], folder: Path, said: Any) -> int:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = _TRACEBACK
    try:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(MOST_S)
        read()
        code = _ACCEPTED
    except ValueError as error:
        traceback.print_exc()
        # a sentence of ours says which file; NumPy's and Python's do not
        code = _REFUSED if _names_file(str(error)) else _TRACEBACK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _names_file(text: str) -> bool:
    return any(KINDS[kind][1].rpartition("/")[2] in text for kind in KINDS)


# what is read


def recorded(folder: Path) -> None:
    from flgo_hydra.report.runs import read_yaml
    from flgo_hydra.resume import read_command
    from flgo_hydra.study.space.kept_grid import grow_recorded

    path = folder / "multirun.yaml"
    read_yaml(path)
    with contextlib.suppress(ValueError):
        read_command(folder)
    from flgo_hydra.study.hydra_records import read_hydra

    grow_recorded(path, read_hydra(path)["overrides"]["task"], ["lr=3"])


def journal(folder: Path) -> None:
    from flgo_hydra.study.stored.storage import name_in, open_storage

    name_in(folder / "study.journal")
    open_storage(folder / "study.journal")


def database(folder: Path) -> None:
    from flgo_hydra.study.stored.storage import exists

    exists("sqlite:///study.db", "s")


def cache(folder: Path) -> None:
    from flgo_hydra.federated.data import dependencies, task_cache

    def build() -> Any:
        return {"x": np.arange(50.0)}, dependencies.state_of(dependencies.Record()), "0"

    task_cache.load_or_build(folder / "tasks", "toy", {}, build, ["x"])


def estimates(folder: Path) -> None:
    from flgo_hydra.launch.scheduling.estimates import Estimates

    found = Estimates("m", folder / "estimates.json")
    found.memory_mib("s")
    found.learn_memory("new", 7)


def lock(folder: Path) -> None:
    from flgo_hydra.record.lock import Held, holding, is_held

    with contextlib.suppress(Held, OSError):
        is_held(folder / "owner.lock")
        with holding(folder / "owner.lock"):
            pass


def flgo(folder: Path) -> None:
    from flgo_hydra.federated import flgo_task

    flgo_task.task_sha256(str(folder))
    flgo_task.flgo(str(folder), "data", str(folder / "data.npz"))


def cifar(folder: Path) -> None:
    from flgo_hydra.federated.data.cifar import read

    read(folder / "data_batch_1", "labels", 10)


def idx(folder: Path) -> None:
    from flgo_hydra.federated.data.idx import read

    read(folder / "images", 3)


def idx_gz(folder: Path) -> None:
    from flgo_hydra.federated.data.idx import read

    read(folder / "images.gz", 3)


def npz(folder: Path) -> None:
    from flgo_hydra.federated import sources
    from flgo_hydra.federated.data import samples

    samples.check(sources.npz(str(folder / "mine.npz")), str(folder / "mine.npz"))


def weights(folder: Path) -> None:
    import torch

    from flgo_hydra.federated.weights import load_weights

    load_weights(torch.nn.Linear(4, 3), str(folder / "w.safetensors"))


# valid files


def make_recorded(folder: Path) -> Path:
    folder.mkdir()
    hydra: dict[str, Any] = {
        "overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": ["lr=0.1,0.2", "seed=1"]},
        "job": {"num": 3, "config_name": "config"},
        "runtime": {"cwd": "/tmp", "config_sources": [{"path": "/x", "provider": "main", "schema": "file"}]},
        "sweeper": {"params": {"seed": "0,1"}, "study_name": None},
        "mode": "MULTIRUN",
    }
    import yaml

    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra, "lr": 0.1}))
    return folder


def make_journal(folder: Path) -> Path:
    import optuna

    from flgo_hydra.study.stored.storage import open_storage

    folder.mkdir()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage, opened = open_storage(folder / "study.journal")
    study = optuna.create_study(storage=storage, study_name="s")
    for value in (1.0, 2.0):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(value, 0)
        study.tell(trial, value)
    assert opened is not None
    opened.close()
    return folder


def make_database(folder: Path) -> Path:
    import optuna

    folder.mkdir()
    optuna.create_study(storage=f"sqlite:///{folder}/study.db", study_name="s")
    return folder


def make_cache(folder: Path) -> Path:
    folder.mkdir()
    cache(folder)
    (entry,) = (folder / "tasks").glob("toy-*")
    assert entry.name == _ENTRY, entry.name
    return folder


def make_estimates(folder: Path) -> Path:
    folder.mkdir()
    estimates(folder)
    return folder


def make_lock(folder: Path) -> Path:
    folder.mkdir()
    (folder / "owner.lock").write_text("1\n")
    return folder


def make_flgo(folder: Path) -> Path:
    folder.mkdir()
    (folder / "info").write_text(json.dumps({"benchmark": "mine", "scene": "horizontal"}))
    clients = {"client_names": ["a", "b"], "a": {"data": [0, 2]}, "b": {"data": [1]}}
    (folder / "data.json").write_text(json.dumps(clients))
    x, y = np.zeros((4, 2), np.float32), np.arange(4)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


def make_cifar(folder: Path) -> Path:
    folder.mkdir()
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    return folder


def make_idx(folder: Path) -> Path:
    folder.mkdir()
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + bytes(24)
    (folder / "images").write_bytes(content)
    (folder / "images.gz").write_bytes(gzip.compress(content))
    return folder


def make_npz(folder: Path) -> Path:
    folder.mkdir()
    np.savez_compressed(folder / "mine.npz", x_train=np.ones((20, 4)), y_train=np.arange(20) % 2)
    return folder


def make_weights(folder: Path) -> Path:
    import torch

    from flgo_hydra.federated.weights import dump_weights

    folder.mkdir()
    (folder / "w.safetensors").write_bytes(dump_weights(torch.nn.Linear(4, 3).state_dict()))
    return folder


# what is done to any file


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def huge_length(path: Path, rng: random.Random) -> None:
    """Four or eight bytes in a row that are the largest number, or a digit that becomes many."""
    content = path.read_bytes()
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    at = rng.randrange(len(content) + 1)
    if digits and rng.random() < 0.5:
        at = rng.choice(digits)
        path.write_bytes(content[:at] + b"9" * rng.choice((1, 6, 12, 20, 400, 5000)) + content[at + 1 :])
    else:
        number = rng.choice((b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\xff\xff\xff\x7f", b"\0" * 4))
        path.write_bytes(content[:at] + number + content[at + len(number) :])


def put_in(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    part = rng.choice(
        (b"[" * 100_000, b"- " * 70_000, b"{a: " * 50_000, b"\0" * 50, b"&a [*a]", b"!!python/name:os.x ")
    )
    part = rng.choice((part, b'{"a":' * 60_000, b"NaN", b"1e999", b"null", b'"', b"\n", rng.randbytes(30)))
    path.write_bytes(content[:at] + part + content[at:])


def again(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    at, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    path.write_bytes(content[:end] + content[at:end] * rng.randint(1, 50) + content[end:])


def encoded(path: Path, rng: random.Random) -> None:
    text = path.read_bytes().decode("latin-1")
    path.write_bytes(text.encode(rng.choice(("utf-16", "utf-32", "utf-7", "utf-8-sig"))))


def replaced(make: Callable[[Path], object]) -> Change:
    def do(path: Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return do


CHANGES: dict[str, Change] = {
    "bits flipped": flip,
    "huge length": huge_length,
    "put in": put_in,
    "again": again,
    "encoded": encoded,
    "cut": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size + 1)),
    "emptied": lambda path, _: path.write_bytes(b""),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": lambda path, rng: path.write_bytes(rng.randbytes(rng.randrange(5000))),
    "a terabyte of nothing": lambda path, _: os.truncate(path, 2**40),
    "nothing before it": lambda path, _: path.write_bytes(b"\0" * 5000 + path.read_bytes()),
    "deleted": replaced(lambda path: None),
    "a folder": replaced(Path.mkdir),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "a link to nowhere": replaced(lambda path: path.symlink_to("nowhere")),
    "a link to /": replaced(lambda path: path.symlink_to("/")),
    "a link to /dev/zero": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a pipe": replaced(os.mkfifo),
}


# made to do harm: each is given the file and a file that only code would make


class Runs:
    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call[0], self._call[1:]


def yaml_bomb(path: Path, _: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    path.write_text("hydra:\n" + "\n".join(f"  {line}" for line in lines))


def yaml_code(path: Path, mark: Path) -> None:
    path.write_text(f"hydra: !!python/object/apply:os.system [\"touch '{mark}'\"]\n")


def json_deep(path: Path, _: Path) -> None:
    path.write_text('{"op_code": 0, "a": ' + "[" * 200_000 + "\n")


def one_endless_line(path: Path, _: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(2**36)
        file.write(b"x\n")


def odd_entries(path: Path, _: Path) -> None:
    entries = [{"op_code": 99}, {"op_code": 4}, {"op_code": 0, "study_name": [1]}, {"op_code": 6, "trial_id": 10**9}]
    path.write_text("".join(json.dumps({"worker_id": "w", **entry}) + "\n" for entry in entries))


def pickle_code(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"data": Runs(os.system, f"touch '{mark}'")}))


def pickle_dtype(path: Path, _: Path) -> None:
    class Dtype:
        def __reduce__(self) -> Any:
            return np.dtype, ("u1", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63)

    path.write_bytes(pickle.dumps({"data": Dtype(), "labels": [1]}))


def pickle_state(path: Path, _: Path) -> None:
    class Array:
        def __reduce__(self) -> Any:
            state = (1, (2**40,), np.dtype("O"), False, b"\x41" * 64)
            return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    path.write_bytes(pickle.dumps({"data": Array(), "labels": [1]}, 2))


_SHARED = b")" + b"2\x86" * 60
"""tuples of one another, 2**60 parts in 200 bytes"""


def pickle_shared_key(path: Path, _: Path) -> None:
    path.write_bytes(b"\x80\x02}" + _SHARED + b"K\x01s.")


def pickle_shared_name(path: Path, _: Path) -> None:
    path.write_bytes(b"\x80\x02cnumpy\ndtype\n" + _SHARED + b"\x85R.")


def pickle_shared_shape(path: Path, _: Path) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    path.write_bytes(b"\x80\x02" + array + b"(K\x01" + _SHARED + b"NNNtb.")


def pickle_lengths(path: Path, _: Path) -> None:
    path.write_bytes(b"\x80\x05\x96" + b"\xff" * 6 + b"\0\0" + b"x" * 10 + b".")


def npz_objects(path: Path, mark: Path) -> None:
    array = np.empty(1, object)
    array[0] = Runs(os.system, f"touch '{mark}'")
    np.savez(path, x_train=array, y_train=np.arange(1))


def npz_bomb(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x_train.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (2**28, 20)})
        for _ in range(16):
            member.write(bytes(2**20))


def npz_claims(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("x_train.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
        member.write(bytes(64))


def npz_bz2(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x_train.npy", bytes(2**22))


def npz_single(path: Path, _: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(4))
    path.write_bytes(buffer.getvalue())


def idx_claims(path: Path, _: Path) -> None:
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 2**31, 2**20, 2**10) + bytes(24)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def weights_claims(path: Path, _: Path) -> None:
    size = 2**40
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"weight": entry, "bias": {"dtype": "F32", "shape": [3], "data_offsets": [size, size + 12]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    os.truncate(path, 8 + len(header) + size + 12)


_ENTRY = "toy-44136fa355b3678a"
KINDS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], object], list[Callable[[Path, Path], object]]]] = {
    "multirun.yaml": (make_recorded, "multirun.yaml", recorded, [yaml_bomb, yaml_code]),
    "journal": (make_journal, "study.journal", journal, [json_deep, one_endless_line, odd_entries]),
    "database": (make_database, "study.db", database, []),
    "cached meta": (make_cache, f"tasks/{_ENTRY}/meta.json", cache, [json_deep]),
    "cached array": (make_cache, f"tasks/{_ENTRY}/x.npy", cache, []),
    "estimates": (make_estimates, "estimates.json", estimates, [json_deep]),
    "lock": (make_lock, "owner.lock", lock, []),
    "flgo": (make_flgo, "data.json", flgo, [json_deep]),
    "flgo info": (make_flgo, "info", flgo, [json_deep]),
    "cifar": (
        make_cifar,
        "data_batch_1",
        cifar,
        [
            *(pickle_code, pickle_dtype, pickle_state, pickle_lengths),
            *(pickle_shared_key, pickle_shared_name, pickle_shared_shape),
        ],
    ),
    "idx": (make_idx, "images", idx, [idx_claims]),
    "idx.gz": (make_idx, "images.gz", idx_gz, [idx_claims]),
    "npz": (make_npz, "mine.npz", npz, [npz_objects, npz_bomb, npz_claims, npz_bz2, npz_single]),
    "safetensors": (make_weights, "w.safetensors", weights, [weights_claims]),
}
"""by name: makes a folder with a valid file, the file's name, reads it, files made to do harm"""


if __name__ == "__main__":
    sys.exit(main())
