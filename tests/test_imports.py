"""Imports point downwards only, and what is heavy or belongs to one part stays there."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import flgo_hydra

_PACKAGE = Path(flgo_hydra.__file__).parent

# Each part with the parts it may import, from the bottom up.
LAYERS = {
    "objective": set(),
    "overrides": set(),
    "config": {"objective"},
    "reference": set(),
    "importing": set(),
    "streams": {"record"},
    "where_typed": set(),
    "installed": set(),
    "own_code": {"installed", "record", "reference"},
    "captured": {"own_code"},
    "mistakes": {"overrides"},
    "kinds": set(),
    "flags": {"mistakes"},
    "machine_errors": {"installed"},
    "progress": set(),
    "record": {"machine_errors", "objective"},
    "recorder": set(),
    "federated": {"config", "reference", "objective", "own_code", "captured", "record", "recorder"},
    "compose": {"config", "reference", "mistakes", "help", "overrides", "record"},
    "composer": {"compose", "config", "overrides", "templates"},
    "templates": {"config"},
    "chosen": {"compose", "config", "help", "overrides"},
    "help": {"config", "flags", "overrides"},
    "resume": {"__main__", "compose", "config", "flags", "overrides", "streams", "study"},
    "explain": {"compose", "config", "help", "kinds", "mistakes", "overrides"},
    "report": {"flags", "machine_errors", "mistakes", "objective", "overrides", "progress", "record", "streams"},
    "launch": {
        *("chosen", "compose", "composer", "config", "machine_errors", "objective", "reference", "progress", "record"),
        "streams",
    },
    "job": {
        "where_typed",
        "config",
        "objective",
        "machine_errors",
        "own_code",
        *("importing", "reference", "progress", "record", "federated", "compose", "launch.reporter"),
    },
    "app": {"where_typed", "chosen", "config", "job", "overrides", "record", "federated", "compose"},
    "study": {
        *(
            "chosen",
            "config",
            "compose",
            "composer",
            "help",
            "machine_errors",
            "mistakes",
            "objective",
            "overrides",
            "own_code",
            "record",
            "reference",
            "report",
            "launch",
            "streams",
        ),
        *("federated.patience", "job.engines"),
    },
    "plugins": {"config", "study", "launch"},
    "__main__": {
        *(
            "app",
            "compose",
            "explain",
            "flags",
            "help",
            "importing",
            "machine_errors",
            "overrides",
            "record",
            "streams",
        ),
        *("launch.scheduling.host", "launch.processes.server_process"),
    },
    "api": {
        "app",
        "captured",
        "chosen",
        "compose",
        "config",
        "explain",
        "federated.algorithm",
        "federated.flgo_task",
        "help",
        "job.engines",
        "job.device",
        "launch",
        "mistakes",
        "objective",
        "overrides",
        "record",
        "reference",
        "report",
        "streams",
        "study",
    },
    "__init__": {"api", "federated.algorithm"},
}

# Packages with the files and folders that may import them.
ANYWHERE = {
    "torch": ("federated/", "recorder/", "record/checkpoint.py", "launch/processes/worker.py"),
    "optuna": (
        "study/pruning.py",
        "study/samplers.py",
        *(f"study/stored/{p}.py" for p in ("behind", "journal", "storage", "study", "widening")),
    ),
    "pynvml": ("launch/scheduling/devices.py",),
    "hydra": (
        "compose.py",
        "composer.py",
        "explain.py",
        "overrides.py",
        "__main__.py",
        "study/",
        "launch/",
        "plugins/",
    ),
    "omegaconf": (
        *(f"{p}.py" for p in ("app", "chosen", "compose", "composer", "explain", "mistakes", "templates", "__main__")),
        "report/rows.py",
        "report/point_rows.py",
    )
    + ("study/", "launch/", "api/", "job/fused.py"),
    "flgo": (),
    "cloudpickle": ("api/shipped.py", "launch/processes/task_reference.py"),
    "sklearn": (),
    "mlxtend": (),
    "matplotlib": (),
    "safetensors": (),
}
# In functions and for type checkers also here: they are imported when a job runs or a picture is drawn.
LAZILY = {
    "torch": ("app.py", "job/"),
    "hydra": ("app.py", "api/calls.py"),
    "sklearn": ("federated/sources.py",),
    "mlxtend": ("federated/sources.py",),
    "matplotlib": tuple(f"report/{name}.py" for name in ("curves", "figure", "bands", "heatmap", "parallel")),
    "safetensors": ("federated/weights.py",),
}


class Import(NamedTuple):
    file: str
    line: int
    module: str
    is_lazy: bool


def _imports_of(text: str, file: str) -> Iterator[Import]:
    """Every import of a file; lazy is one in a function or under `if TYPE_CHECKING`."""

    def visit(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, is_lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield Import(file, node.lineno, f"{node.module}.{alias.name}", is_lazy)
        is_lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_lazy = is_lazy or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, is_lazy)

    yield from visit(ast.parse(text), False)


def _ours() -> list[Import]:
    files = [path for path in sorted(_PACKAGE.rglob("*.py")) if "conf" not in path.relative_to(_PACKAGE).parts]
    assert len(files) > 20
    return [
        found
        for path in files
        for found in _imports_of(path.read_text(encoding="utf-8"), str(path.relative_to(_PACKAGE).as_posix()))
    ]


def _wrong_layers(imports: list[Import]) -> list[str]:
    wrong = []
    for file, line, module, _ in imports:
        package, _, inner = module.partition(".")
        if package != "flgo_hydra" or not inner or inner.startswith("__"):
            continue  # flgo_hydra itself has the version only
        part = file.split("/")[0].removesuffix(".py")
        to = inner.split(".")[0]
        allowed = LAYERS[part] | ({part} if "/" in file else set())
        if to not in allowed and not any(f"{inner}.".startswith(f"{name}.") for name in allowed):
            wrong.append(f"flgo_hydra/{file}:{line} imports {module}, but {part} may import {sorted(allowed)} only")
    return wrong


def _wrong_packages(imports: list[Import]) -> list[str]:
    wrong = []
    for file, line, module, is_lazy in imports:
        package = module.partition(".")[0]
        allowed = ANYWHERE.get(package, (file,)) + (LAZILY.get(package, ()) if is_lazy else ())
        if not any(file == place or (place.endswith("/") and file.startswith(place)) for place in allowed):
            when = "in a function" if is_lazy else "at module level"
            wrong.append(
                f"flgo_hydra/{file}:{line} imports {module} {when}: allowed in {', '.join(allowed) or 'no file'}"
            )
    return wrong


def test_imports_point_downwards() -> None:
    assert "\n".join(_wrong_layers(_ours())) == ""


def test_packages_are_imported_where_they_belong() -> None:
    assert "\n".join(_wrong_packages(_ours())) == ""


def test_no_module_imports_one_that_imports_it() -> None:
    """Neither in a function nor for type checkers."""
    modules = {
        ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in _PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for file, _, name, _ in _ours():
        importer = f"flgo_hydra.{file.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")
        imported = name if name in modules else name.rpartition(".")[0]
        if imported in modules and imported not in ("flgo_hydra", importer):
            graph.setdefault(importer, set()).add(imported)
    assert len(graph) > 200
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_every_part_has_a_layer() -> None:
    parts = {path.stem for path in _PACKAGE.glob("*.py")} | {
        path.name for path in _PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))
    }
    assert parts == set(LAYERS)


@pytest.mark.parametrize(
    "file, text, wrong",
    [
        ("federated/a.py", "import torch", None),
        ("federated/a.py", "from flgo_hydra.federated import b", None),
        ("federated/a.py", "from flgo_hydra import compose", "federated/a.py:1 imports flgo_hydra.compose"),
        ("federated/a.py", "def f():\n    from hydra import x", "federated/a.py:2 imports hydra.x in a function"),
        ("record/a.py", "from flgo_hydra.report.rows import Row", "record/a.py:1 imports flgo_hydra.report.rows.Row"),
        ("record/a.py", "import torch", "record/a.py:1 imports torch at module level"),
        ("app.py", "import torch", "app.py:1 imports torch at module level"),
        ("app.py", "def f():\n    import torch", None),
        ("app.py", "if TYPE_CHECKING:\n    import torch", None),
        ("job/a.py", "from flgo_hydra.launch import reporter", None),
        ("job/a.py", "from flgo_hydra.launch import pool", "job/a.py:1 imports flgo_hydra.launch.pool"),
        ("study/sweeper.py", "def f():\n    import optuna", "study/sweeper.py:2 imports optuna in a function"),
        ("launch/a.py", "from flgo_hydra import study", "launch/a.py:1 imports flgo_hydra.study"),
        ("report/a.py", "import numpy", None),
    ],
)
def test_the_rules_themselves(file: str, text: str, wrong: str | None) -> None:
    imports = list(_imports_of(text, file))
    found = "\n".join(_wrong_layers(imports) + _wrong_packages(imports))
    assert (wrong in found) if wrong else found == ""


def test_the_engine_needs_torch_and_numpy_only():
    """So that it can be measured on a machine that has nothing else."""
    code = (
        "import importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('hydra', 'omegaconf', 'optuna', 'sklearn', 'yaml', 'pynvml'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import flgo_hydra.federated.backend.choice, flgo_hydra.federated.backend.fused, flgo_hydra.federated.rounds\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
