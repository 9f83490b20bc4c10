"""What a disk may hold after the power went, at each moment of a real command.

`start` watches a folder from inside of a process and of all that it forks: before each change of a name (a file that is
made, renamed, removed) and after each wait for the disk, everything below the folder is noted, whoever has written it.
`Disk` replays these moments: sure is of each file what it was at its last wait, and of each folder its names at its
own; of the rest, anything may be there.

It imports nothing of ours: a child process finds it on its PYTHONPATH, as `sitecustomize`.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import sys
import threading
from pathlib import Path

_watched = None
_local = threading.local()
_is_hooked = False
_real_fsync = os.fsync
_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


def start(root, log):
    """Notes every moment of what lies below `root` from now on, in the folder `log`."""
    global _watched, _is_hooked
    _watched = os.path.abspath(root), os.path.abspath(log)
    os.makedirs(_watched[1], exist_ok=True)
    os.fsync = _fsync
    if not _is_hooked:
        sys.addaudithook(_hook)
        _is_hooked = True


def stop():
    """Notes the last moment, and nothing more."""
    global _watched
    _note("end")
    _watched, os.fsync = None, _real_fsync


def _hook(event, arguments):
    if event not in _CHANGES or _watched is None or getattr(_local, "is_noting", False):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_CREAT | os.O_TRUNC):
        return
    path = arguments[0]
    if isinstance(path, int) or os.path.abspath(os.fsdecode(path)).startswith(_watched[0] + os.sep):
        _note(event)


def _fsync(fd):
    _real_fsync(fd)
    if _watched is not None:
        path = os.readlink(f"/proc/self/fd/{fd if isinstance(fd, int) else fd.fileno()}")
        if path == _watched[0] or path.startswith(_watched[0] + os.sep):
            _note("fsync", os.path.relpath(path, _watched[0]))


def _note(event, path=""):
    root, log = _watched
    _local.is_noting = True
    try:
        with open(os.path.join(log, "lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files, folders = {}, ["."]
            for folder, names, own in os.walk(root):
                folders += [os.path.relpath(os.path.join(folder, name), root) for name in names]
                for name in own:
                    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                        whole = os.path.join(folder, name)
                        with open(whole, "rb") as file:
                            inode, content = os.fstat(file.fileno()).st_ino, file.read()
                        sha256 = hashlib.sha256(content).hexdigest()
                        if not os.path.exists(os.path.join(log, sha256)):
                            with open(os.path.join(log, sha256), "wb") as kept:
                                kept.write(content)
                        files[os.path.relpath(whole, root)] = [inode, sha256]
            with open(os.path.join(log, "moments.jsonl"), "a") as moments:
                moments.write(json.dumps({"event": event, "path": path, "files": files, "folders": folders}) + "\n")
    finally:
        _local.is_noting = False


WAYS = ("synced", "empty", "zeros", "half", "garbage", "mixed")
"""What is there of what nobody has waited for: nothing; names of empty files, or of right lengths; anything."""


class Disk:
    """The moments of a command, and what the disk may hold after each."""

    def __init__(self, log):
        self._log = Path(log)
        lines = [json.loads(line) for line in (self._log / "moments.jsonl").read_text().splitlines()]
        self.events = [f"{line['event']} {line['path']}".strip() for line in lines]
        self.seen = [{path: sha256 for path, (_, sha256) in line["files"].items()} for line in lines]
        """what a reader has found under each name at that moment"""
        self._moments = []
        self._next, known = 0, {}
        content, names = {}, {".": {}}
        for line in lines:
            # A number of an inode may be given again: what it stood for is then another file.
            known = {inode: known[inode] if inode in known else self._new() for inode, _ in line["files"].values()}
            now = {path: (known[inode], sha256) for path, (inode, sha256) in line["files"].items()}
            if line["event"] == "fsync" and line["path"] in now:
                content = {**content, now[line["path"]][0]: now[line["path"]][1]}
            elif line["event"] == "fsync":
                inside = {path: number for path, (number, _) in now.items() if _above(path) == line["path"]}
                below = {path: None for path in line["folders"] if path != "." and _above(path) == line["path"]}
                names = {**names, line["path"]: {**inside, **below}}
            self._moments.append((now, line["folders"], content, names))

    def _new(self):
        self._next += 1
        return self._next

    def __len__(self):
        return len(self._moments)

    def make(self, at, way, folder, seed=0):
        """Makes in `folder` what may be found there after a loss of power at a moment."""
        rng = random.Random(f"{at} {way} {seed}")
        now, folders, content, names = self._moments[at]
        current = {number: sha256 for number, sha256 in now.values()}
        parts = {}
        present = {"."}
        for above in sorted({*folders, *names}, key=lambda path: (path != ".", path.count("/"), path)):
            if above not in present:
                continue
            (folder / above).mkdir(parents=True, exist_ok=True)
            sure = names.get(above, {})
            live = {path: number for path, (number, _) in now.items() if _above(path) == above}
            live |= {path: None for path in folders if path != "." and _above(path) == above}
            for path in sorted({*sure, *live}):
                took = sure if way == "synced" or (way == "mixed" and rng.random() < 0.5) else live
                if path in took and took[path] is None:
                    present.add(path)
                elif path in took:
                    number = took[path]
                    if number not in parts:
                        parts[number] = self._content(current.get(number), content.get(number), way, rng)
                    (folder / path).write_bytes(parts[number])

    def read(self, sha256):
        return b"" if sha256 is None else (self._log / sha256).read_bytes()

    def _content(self, current, sure, way, rng):
        before, now = self.read(sure), self.read(current if current is not None else sure)
        if before == now or way == "synced":
            return before
        way = rng.choice(("empty", "zeros", "half", "garbage", "whole")) if way == "mixed" else way
        kept = before if now.startswith(before) else b""
        rest = now[len(kept) :]
        made = {"empty": b"", "zeros": bytes(len(rest)), "half": rest[: len(rest) // 2], "whole": rest}
        return kept + made[way] if way in made else kept + rng.randbytes(len(rest))


def _above(path):
    return os.path.dirname(path) or "."


if os.environ.get("RECORD_DISK_OF"):
    start(os.environ["RECORD_DISK_OF"], os.environ["RECORD_DISK_IN"])
