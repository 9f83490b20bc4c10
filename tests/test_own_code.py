"""Which files are the user's own, and what of them a config leads to."""

import importlib
import sys
from pathlib import Path

import pytest

from flgo_hydra import own_code

FILES = {
    "first.py": "import numpy, json, torch\nfrom pack import inner\nimport second as other\n",
    "second.py": "def late():\n    from . import nothing\n    import third.deep\n",
    "third/__init__.py": "",
    "third/deep.py": "from . import beside\nfrom .beside import name\nimport first\n",
    "third/beside.py": "name = 1\n",
    "pack/__init__.py": "import importlib\nimportlib.import_module('named')\n",
    "pack/inner.py": "from pack.inner_of import *\n",
    "pack/inner_of.py": "",
    "named.py": "import broken\n",
    "broken.py": "this is no Python\n",
    "alone.py": "",
}


@pytest.fixture
def folder(empty_folder):
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    importlib.invalidate_caches()
    return empty_folder


def test_imports_are_followed_as_far_as_they_are_the_users_own(folder):
    found = own_code.hash_files(["first.function"])
    assert sorted(found) == sorted(set(FILES) - {"alone.py"})
    assert sorted(own_code.hash_files(["alone.f", "third.deep.f"])) == sorted(FILES)
    assert own_code.hash_files(["torch.nn.Linear", "flgo_hydra.federated.sources.digits", "json.dumps", "none.f"]) == {}
    assert not {"first", "second", "third"} & sys.modules.keys()  # nothing was imported


def test_another_text_is_another_hash_and_a_loaded_module_keeps_its_own(folder):
    before = own_code.hash_files(["second.late"])
    Path("third/beside.py").write_text("name = 2\n")
    assert own_code.differing(before, own_code.hash_files(["second.late"])) == ["third/beside.py"]
    importlib.import_module("alone")
    loaded = own_code.hash_files(["alone.f"])
    Path("alone.py").write_text("changed = True\n")
    assert own_code.hash_files(["alone.f"]) == loaded
    del sys.modules["alone"]
    assert own_code.hash_files(["alone.f"]) != loaded


def test_one_hash_of_all():
    assert own_code.combine({}) == ""
    assert own_code.combine({"a": "1", "b": "2"}) == own_code.combine({"b": "2", "a": "1"})
    assert own_code.combine({"a": "1"}) != own_code.combine({"b": "1"})


def test_what_a_config_leads_to(folder):
    config = {
        "task": {"source": {"_target_": "third.deep.f"}, "partition": {"_target_": "flgo_hydra.x.iid"}},
        "model": {"_target_": "given_in_python.of_width_0123456789ab"},
        "algorithm": {"_target_": "flgo_hydra.y.F", "module": "pack.inner"},
        "option": {"metrics": "alone.f"},
    }
    code = own_code.behind(config)
    assert code["files"]["given_in_python.of_width_0123456789ab"] == "0123456789ab"
    assert {"third/beside.py", "pack/inner_of.py", "alone.py"} <= code["files"].keys()
    assert code["sha256"] == own_code.combine(code["files"])


def test_folders_without_init_are_followed_too(folder):
    for name, text in {"bare/models.py": "import bare.deep.block\n", "bare/deep/block.py": "width = 1\n"}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    importlib.invalidate_caches()
    assert sorted(own_code.hash_files(["bare.models.M"])) == ["bare/deep/block.py", "bare/models.py"]
    Path("outer.py").write_text("from bare.models import M\n")
    importlib.invalidate_caches()
    assert sorted(own_code.hash_files(["outer.f"])) == ["bare/deep/block.py", "bare/models.py", "outer.py"]
    assert "bare" not in sys.modules


def test_the_hash_is_of_what_was_imported(folder):
    importlib.import_module("alone")
    own_code.remember("alone.f")
    before = own_code.hash_files(["alone.f"])
    Path("alone.py").write_text("changed = 2\n")
    assert own_code.hash_files(["alone.f"]) == before
