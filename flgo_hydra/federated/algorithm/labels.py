"""What methods ask of a task that are about classes."""

from flgo_hydra.federated.algorithm.base import Client
from flgo_hydra.federated.refused import Refused


def require_classes(client: Client, name: str) -> None:
    """Raises `Refused` unless a client's samples are labelled with classes. Of use in `begin`, which is called before
    anything trains."""
    if "label_counts" not in client.facts:
        raise Refused(f"{name} is about the classes of the samples, but this task is a regression and has none.")
