"""An algorithm from the config that names it."""

from typing import Any

from flgo_hydra import reference
from flgo_hydra.federated.algorithm.base import Algorithm


def build_algorithm(parameters: dict[str, Any]) -> tuple[Algorithm, dict[str, float]]:
    """Returns the algorithm that a choice names, and its hyper-parameters.

    The choice's numbers are hyper-parameters, given to the algorithm's functions with each call; whatever else it
    has (strings, booleans, lists) goes to the class's constructor.

    Raises:
        ValueError: the reference is wrong, or is no `Algorithm`.
    """
    target = str(parameters["_target_"])
    rest = {key: value for key, value in parameters.items() if key not in ("_target_", "name")}
    numbers = {key: v for key, v in rest.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    given = {key: value for key, value in rest.items() if key not in numbers}
    kind = reference.load(target, "algorithm._target_")
    if not (isinstance(kind, type) and issubclass(kind, Algorithm)):
        raise ValueError(
            f"`algorithm._target_={target}` must be a subclass of flgo_hydra.federated.algorithm.base.Algorithm."
        )
    algorithm: Algorithm = reference.call(kind, given, {}, "algorithm")
    return algorithm, numbers
