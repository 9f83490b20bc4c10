"""Where the YAML files of `conf/` lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """`conf/`: inside the package where it was installed from a wheel, else beside our own pyproject.toml."""
    inside = _PACKAGE / "conf"
    if inside.is_dir():
        return inside
    beside = _PACKAGE.parent / "conf"
    assert (beside.parent / "pyproject.toml").is_file() and beside.is_dir(), f"no conf/ in {_PACKAGE} or beside it"
    return beside
