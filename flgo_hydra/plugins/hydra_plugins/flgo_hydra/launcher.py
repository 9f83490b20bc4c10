"""Where Hydra looks for launchers. Hydra 1.3 runs this module twice: the real class lies elsewhere."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

from flgo_hydra.config.launcher import LauncherConf
from flgo_hydra.launch import launcher


class PackingLauncher(launcher.PackingLauncher):
    """`hydra/launcher=flgo_hydra`"""


class OfferLauncher(SearchPathPlugin):
    """Offers `hydra/launcher=flgo_hydra` to apps without our `conf/`. Called at each start of Hydra.

    Where there is a YAML of that name, a node beside it would be taken for its schema, with a warning (Hydra 1.3).
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Registers the launcher's config, or takes it back."""
        folders = [str(element.path).removeprefix("file://") for element in search_path.get_path()]
        store = ConfigStore.instance()
        registered = store.repo.get("hydra", {}).get("launcher", {})
        if any(Path(folder, "hydra", "launcher", "flgo_hydra.yaml").is_file() for folder in folders):
            registered.pop("flgo_hydra.yaml", None)
        elif "flgo_hydra.yaml" not in registered:  # Hydra 1.4 warns of a second time
            node = LauncherConf(_target_="hydra_plugins.flgo_hydra.launcher.PackingLauncher")
            store.store(group="hydra/launcher", name="flgo_hydra", node=node, provider="flgo_hydra")
