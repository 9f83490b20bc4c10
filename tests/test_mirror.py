"""A file of the package has a test of its name, in the same place: what is measured there only counts as tested."""

from pathlib import Path

import flgo_hydra

_PACKAGE = Path(flgo_hydra.__file__).parent
_TESTS = Path(__file__).parent

# Tested elsewhere so far, under another name. Nothing is added here: a new file gets a test of its name.
_ELSEWHERE = {
    ".": "__main__ importing installed streams",
    "api": "calls shipped",
    "config": (
        "algorithm conf folder global_methods launcher laws model option part_methods personal_methods sweeper task"
    ),
    "federated": "fused_rounds refused synthetic transfer users_code",
    "federated/algorithm": "adaptive base build linear_head message tensors tuned",
    "federated/backend": (
        "beyond buffers calls cost fillings hooks lane_differences lane_kind lane_tensors lane_trial "
        "lanes loop mixing noticed putting_back python_state recorded_steps snapshot"
    ),
    "federated/parts": "base sign_flip",
    "federated/clients": "client_program",
    "federated/data": "facts idx npz",
    "job": "flgo fused imports native outcome watcher",
    "launch": "reporter",
    "launch/processes": "channel forkserver fused",
    "launch/scheduling": "kernel_kills",
    "plugins/hydra_plugins/flgo_hydra": "launcher sweeper",
    "record": "log_trouble paths yaml_text",
    "recorder": "arena in_place linear needed operations tape writer",
    "report": "__main__ bands conditions figure formats heatmap parallel point_rows question seeds tables",
    "study": "data_sets hydra_records jobs ownership tables trials",
    "study/space": "common replicates",
    "study/stored": "widening",
}


def test_files_have_tests_of_their_names() -> None:
    files = [path.relative_to(_PACKAGE) for path in _PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    places = ("test_{}", "methods/proof_{}")  # a method's test is its proof
    without = {path for path in files if not any((_TESTS / path.parent / p.format(path.name)).exists() for p in places)}
    known = {Path(room, f"{name}.py") for room, names in _ELSEWHERE.items() for name in names.split()}
    assert sorted(map(str, without - known)) == []
    assert sorted(map(str, known - without)) == [], "they have one now: take them out of the list"
