"""Who computes a run is asked once."""

import ast
from pathlib import Path

import flgo_hydra
from flgo_hydra.job import flgo, native
from flgo_hydra.job.engines import engine_of


def test_flgos_algorithms_are_flgos_and_all_others_ours(make_conf):
    conf = make_conf("algorithm=flgo", "model=flgo", "task=flgo", "task.path=here", "algorithm.module=fedavg")
    assert engine_of(conf) is flgo and not flgo.can_fuse(conf) and flgo.targets(conf) == {}
    conf = make_conf("metrics=mine.worst", "monitor=valid_loss")
    assert engine_of(conf) is native and native.can_fuse(conf)
    assert native.targets(conf)["metrics"] == "mine.worst" and set(native.targets(conf)) == {
        "model",
        "algorithm",
        "metrics",
    }
    assert not native.can_fuse(make_conf("engine.backend=loop"))


def test_nobody_else_asks():
    package = Path(flgo_hydra.__file__).parent
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and "FlgoConf" in ast.unparse(node)
    }
    assert asking == {"job/engines.py"}
