"""A mistake on the command line, answered with what was probably meant."""

import difflib
from collections.abc import Collection, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from flgo_hydra.overrides import Override

FLGO_NAMES = {
    "learning_rate": "lr",
    "learning_rate_decay": "lr_decay",
    "lr_scheduler": "lr_schedule",
    "algo_para": "algorithm",
    "gpu": "device",
    "dataseed": "task.seed",
    "check_interval": "checkpoint_interval",
    "save_optimal": "save_best",
    "save_checkpoint": "checkpoint_interval",
    "load_checkpoint": "hydra.run.dir",
    "num_clients": "task.num_clients",
    "partitioner": "task/partition",
    "benchmark": "task",
    "diversity": "task.partition.classes_per_client",
    "imbalance": "task.partition.sigma",
    "clients_per_round": "proportion",
    "epochs": "num_epochs",
    "local_epochs": "num_epochs",
    "rounds": "num_rounds",
    "torch_num_threads": "num_threads",
    "patience": "early_stop",
}
"""FLGo's names (and a few of other tools) for what has another name here."""


def nearest(key: str, known: Collection[str], count: int = 3) -> list[str]:
    """Returns the known keys that `key` may have meant, best first, compared whole and by their last part."""
    parent, _, last = key.rpartition(".")
    if FLGO_NAMES.get(last) in known:
        return [FLGO_NAMES[last]]
    scores: dict[str, tuple[float, float]] = {}
    for candidate in known:
        above, _, tail = candidate.replace("/", ".").rpartition(".")
        if key.startswith(f"{above}.{tail}.".lstrip(".")):
            continue  # what is above the key was not misspelt
        whole = difflib.SequenceMatcher(None, key.lower(), candidate.lower()).ratio()
        by_tail = difflib.SequenceMatcher(None, last.lower(), tail.lower()).ratio()
        # Hydra has a hundred keys of its own: they are meant by who writes `hydra`.
        if candidate.startswith("hydra.") != key.startswith("hydra"):
            by_tail = 0.0
        # A long name in common above them does not make two keys alike.
        if parent and parent == above:
            whole = by_tail
        # A whole match counts a little more, so that `task.sed` finds `task.seed` before `seed`.
        scores[candidate] = (max(whole, 0.98 * by_tail), whole)
    least = max(0.6, max((score for score, _ in scores.values()), default=0.0) - 0.12)
    names = sorted(name for name, (score, _) in scores.items() if score >= least)
    return sorted(names, key=scores.__getitem__, reverse=True)[:count]


def unknown_key(key: str, known: Collection[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """The error for a key that does not exist.

    Args:
        known: keys that do.
        elsewhere: keys that other choices have, with the choice: `{"algorithm.mu": "algorithm=fedprox"}`.
    """
    elsewhere = {name: choice for name, choice in (elsewhere or {}).items() if name not in known}
    if key in ("experiment", "option"):  # a group whose choices are no node of the config
        return (
            f"`{key}=…` must choose a YAML file that sets keys at the root, but this one sets keys of `{key}`. Its "
            "first line must be `# @package _global_`."
        )
    if key in elsewhere:
        return f"There is no `{key}` with the choices made: it is a key of {elsewhere[key]}."
    names = nearest(key, [*known, *elsewhere])
    parent = key.rpartition(".")[0]
    siblings = sorted(name.rpartition(".")[2] for name in known if parent and name.rpartition(".")[0] == parent)
    is_hydras = key.startswith("hydra.") and not any(name.startswith(f"{parent}.") for name in names)
    if siblings and (not names or is_hydras):  # Hydra has a hundred keys that are like any other
        return f"There is no `{key}`. `{parent}` has {', '.join(siblings)}."
    texts = [f"`{name}`" + (f" (of {elsewhere[name]})" if name in elsewhere else "") for name in names]
    advice = f"Did you mean {' or '.join(texts)}?" if names else "`python -m flgo_hydra --help` lists the keys."
    return f"There is no `{key}`. {advice}"


def to_be_added(key: str, typed: str | None = None) -> str:
    """The error for a new key where keys of one's own may stand."""
    above = key.rpartition(".")[0]
    added = f"+{typed}" if typed else f"+{key}=…"
    return (
        f"There is no `{key}` yet: `{above}` has keys of your own, and a new one must be added with a plus, `{added}`."
    )


def of_other_points(key: str, point: Sequence[str], others: Sequence[str]) -> str:
    """The error for a key that some points of a grid have, and one has not.

    Args:
        others: choices that have it, if they are known: `algorithm=fedprox`.
    """
    own = [text for text in point if Override.read(text).name != key]
    whose = f", which is a key of {' '.join(others)}" if others else ", which other points have"
    with_it = f"{' '.join(others) or '…'} {key}=…"
    return (
        f"The point {' '.join(own)} has no `{key}`{whose}. A grid gives a key to all of its "
        f"points. In `hydra.sweeper.points` each point has its own: "
        f'`\'hydra.sweeper.points=["{" ".join(own)}","{with_it}"]\'`.'
    )


def unknown_choice(group: str, choice: str, choices: Collection[str]) -> str:
    """The error for a choice that its group does not have."""
    names = difflib.get_close_matches(choice, choices, n=1, cutoff=0.6)
    advice = f" Did you mean `{group}={names[0]}`?" if names else ""
    return f"`{group}` has no choice {choice!r}. It has {', '.join(sorted(choices))}.{advice}"


def nothing_of_group(group: str, names: str) -> str:
    """The error for `experiment=tune,null`: Hydra cannot choose nothing from the command line."""
    named = names.replace("null", "none")
    return (
        f"`{group}={names}` must name choices, but `null` is none. Give nothing a name of its own: a file "
        f"my_conf/{group}/none.yaml with the line `# @package _global_`, and `--config-dir my_conf {group}={named}`."
    )


def keys_of(cfg: DictConfig, without: str = "", prefix: str = "") -> list[str]:
    """Every key of a config, in full (`task.partition.alpha`), leaving one out."""
    keys: list[str] = []
    for key in cfg:
        full = f"{prefix}{key!s}"
        if full != without:
            keys.append(full)
            node = cfg._get_node(key)
            if OmegaConf.is_dict(node) and not node._is_none() and not node._is_missing():  # type: ignore[union-attr]
                keys.extend(keys_of(node, without, f"{full}."))  # type: ignore[arg-type]
    return [key for key in keys if key != without and not key.rpartition(".")[2].startswith("_")]


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
