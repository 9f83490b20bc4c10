"""A file of the package has a test of its name, in the same place: what is measured there only counts as tested."""

from pathlib import Path

import flgo_hydra

_PACKAGE = Path(flgo_hydra.__file__).parent
_TESTS = Path(__file__).parent

# Tested elsewhere so far, under another name. Nothing is added here: a new file gets a test of its name.
_ELSEWHERE = {
    ".": "__main__ importing installed streams",
    "api": "calls shipped",
    "config": "algorithm conf launcher laws model option part_methods sweeper task",
    "federated": "refused synthetic together transfer users_code",
    "federated/algorithm": (
        "afl base build ditto fedavg fedbabu fedbn fedlc fedntd fedper fedprox fedrep fedsam finetune lgfedavg "
        "local local_training message moon qfedavg scaffold tensors tuned"
    ),
    "federated/backend": (
        "beyond buffers calls cannot cost fillings hooks lane_differences lane_kind lane_tensors lane_trial "
        "lanes loop mixing noticed putting_back python_state snapshot traced"
    ),
    "federated/parts": "base sign_flip",
    "federated/clients": "client_program",
    "federated/data": "facts idx npz",
    "job": "flgo group imports native outcome watcher",
    "launch": "reporter",
    "launch/processes": "channel forkserver group",
    "launch/scheduling": "kernel_kills",
    "plugins/hydra_plugins/flgo_hydra": "launcher sweeper",
    "record": "log_trouble paths yaml_text",
    "recorder": "arena in_place linear needed operations tape writer",
    "report": "__main__ bands conditions figure formats heatmap parallel points question seeds tables",
    "study": "data_sets jobs ownership recorded tables trials",
    "study/space": "common replicates",
    "study/stored": "widening",
}


def test_files_have_tests_of_their_names() -> None:
    files = [path.relative_to(_PACKAGE) for path in _PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    without = {path for path in files if not (_TESTS / path.parent / f"test_{path.name}").exists()}
    known = {Path(room, f"{name}.py") for room, names in _ELSEWHERE.items() for name in names.split()}
    assert sorted(map(str, without - known)) == []
    assert sorted(map(str, known - without)) == [], "they have one now: take them out of the list"
