"""Which code is the user's own, and which is Python's, a package's or ours."""

import functools
import sysconfig
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_STDLIB = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to flgo_hydra, and so not to the user."""
    if not file or file.startswith("<"):  # frozen or built in
        return not file.startswith(("<ipython", "<stdin", "<string"))
    return _is_installed(file)


@functools.lru_cache(maxsize=10_000)
def _is_installed(file: str) -> bool:
    path = Path(file).absolute()
    is_package = any(part in ("site-packages", "dist-packages") for part in path.parts)
    return is_package or path.is_relative_to(_PACKAGE) or any(path.is_relative_to(folder) for folder in _STDLIB)
