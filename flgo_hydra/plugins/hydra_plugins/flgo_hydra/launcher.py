"""Where Hydra looks for launchers. Hydra 1.3 runs this module twice: the real class lies elsewhere."""

from hydra.core.config_store import ConfigStore

from flgo_hydra.launch import launcher
from flgo_hydra.launch.settings import LauncherConf


class PackingLauncher(launcher.PackingLauncher):
    """`hydra/launcher=flgo_hydra`"""


# For apps that do not have our conf/; where it is, its YAML comes first.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="flgo_hydra",
    node=LauncherConf(_target_="hydra_plugins.flgo_hydra.launcher.PackingLauncher"),
    provider="flgo_hydra",
)
