"""What Hydra recorded of a command: in `multirun.yaml` of a sweep, in `.hydra/hydra.yaml` of a run."""

import io
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from flgo_hydra.record.schema import Defect
from flgo_hydra.record.yaml_text import read_text

_REMEDY = " Put it back from a copy, or give the whole command again with the same folder."


def read_config(path: Path) -> DictConfig | ListConfig:
    """A config that Hydra has recorded.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        text = read_text(path)
        if text is None:
            raise Defect(path, "is not there")
        return OmegaConf.load(io.StringIO(text))
    except Defect as defect:
        raise ValueError(f"{path} {defect.why}, so that nobody can say what was run.{_REMEDY}") from None
    except Exception as error:  # whatever a damaged YAML makes its reader raise
        told = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read: {told}.{_REMEDY}") from error


def read_hydra(path: Path) -> dict[str, Any]:
    """Hydra's own node of a recorded config, as plain values.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        node: Any = OmegaConf.to_container(read_config(path), resolve=False)
        hydra: dict[str, Any] = node["hydra"]
        texts = [*hydra["overrides"]["hydra"], *hydra["overrides"]["task"], hydra["runtime"]["cwd"]]
        texts += [one[key] for one in hydra["runtime"]["config_sources"] for key in ("path", "provider")]
        hydra["job"].items(), hydra.setdefault("sweeper", {}).items()
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an override, or a folder, is no text")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no command of Hydra's: {type(error).__name__}: {error}.{_REMEDY}") from error
    return hydra


def config_dir(hydra: dict[str, Any]) -> Path | None:
    """The folder that was given as --config-dir."""
    paths = [source["path"] for source in hydra["runtime"]["config_sources"] if source["provider"] == "command-line"]
    return Path(paths[-1]) if paths else None


class SingleRun(ValueError):
    """A folder is of a run that no sweep has started."""


def read_job(run: Path, record: str | None) -> tuple[int, list[str]]:
    """A run's job number, and the overrides that it was composed from, fixed ones included.

    Args:
        record: the folder in the run's where Hydra recorded it (`hydra.output_subdir`).
    Raises:
        SingleRun: no sweep has started it.
        ValueError: Hydra recorded none, or it cannot be read.
    """
    if record is None:
        raise ValueError(f"{run} does not say which point it is: it ran with `hydra.output_subdir=null`.")
    hydra = read_hydra(run / record / "hydra.yaml")
    if str(hydra.get("mode")).endswith("RUN") and "MULTIRUN" not in str(hydra.get("mode")):
        raise SingleRun(f"{run} is a single run.")
    try:
        return int(hydra["job"]["num"]), [str(text) for text in hydra["overrides"]["task"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{run / record / 'hydra.yaml'} is of no job of a sweep.") from error
