"""Hydra's errors in the words of the person who typed the command: what must hold, what came, what to do. One line."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from flgo_hydra import config, kinds, mistakes
from flgo_hydra.compose import hydra_main_arguments
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.help import GROUPS, Overridden, config_dirs, group_choices, keys_by_choice, meaning_of
from flgo_hydra.overrides import Override, line_of, override, setting, texts_of

_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
_NO_CHOICE = re.compile(r"Could not find '([^']+)'")
_NOT_IN = re.compile(r"Could not override '([^']+)'|Key '([^']+)' is not in struct|Key '([^']+)' not in ")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
_FULL_KEY = re.compile(r"full_key: *(\S+)")
_MOST_DIGITS = 308
_ENDLESS = re.compile(r"\d(?:_?\d){308,}")
_NO_INDEX = re.compile(r"invalid literal for int\(\) with base 10: '(\w+)'")
_PART = re.compile(r"(.*?)((?:\[\d+\])+)")


def explain(error: BaseException, arguments: Sequence[str]) -> str:
    """Returns what was wrong and what to do, from an error of Hydra, OmegaConf or ours."""
    return re.sub(r"\s*\n\s*", " ", _explain(error, arguments)).strip()


def refuse_early(arguments: Sequence[str]) -> None:
    """Raises ValueError for overrides that Hydra takes, or breaks at, though nothing good can come of them."""
    refuse_endless_numbers(arguments)
    for argument in arguments:
        one = Override.read(argument)
        key, value = one.name, one.text or ""
        group = key.replace(".", "/")
        if key.endswith("._target_") and group.rpartition("/")[0] in _HYDRA_GROUPS:
            node = key.rpartition(".")[0]
            raise ValueError(
                f"`{key}` must be what its choice says, but got {value!r}. Choose another one with "
                f"`{node.replace('.', '/')}=…` ({', '.join(_hydra_choices(node.replace('.', '/')))})."
            )
        if key.startswith("hydra.") and group in _HYDRA_GROUPS and not value.startswith("{"):
            choices = ", ".join(_hydra_choices(group))
            raise ValueError(
                f"`{key}` must be the keys of a {group.rpartition('/')[2]}, but got {value!r}. Choose another one with "
                f"`{group}=…` ({choices})."
            )
        if key == "hydra" and value and not value.startswith(("{", "[")):
            raise ValueError(f"`hydra` must be Hydra's own keys, but got {value!r}. Set one: `hydra.run.dir=…`.")
        if key in GROUPS and value.startswith("[") and "," not in value:
            raise ValueError(mistakes.unknown_choice(key, value, group_choices(key, config_dirs(arguments))))


def refuse_endless_numbers(arguments: Sequence[str]) -> None:
    """Raises ValueError for an override with a number of more digits than any float has: Python, Hydra and torch would
    each break at it in their own way."""
    for argument in arguments:
        if digits := _ENDLESS.search(argument):
            raise ValueError(
                f"`{Override.read(argument).key}` must have numbers of at most {_MOST_DIGITS} digits, but got one of "
                f"{len(digits[0])}, {digits[0][:8]}…. Write a smaller one."
            )


def of_overflow(error: BaseException) -> str | None:
    """The sentence for such a number in a file, of which OmegaConf says where it was put; None for other errors."""
    if not isinstance(error, OverflowError) or "object_type" not in str(error):
        return None
    where = _FULL_KEY.search(str(error))
    said = f"`{where[1]}` must be a number" if where else "Every number of a config must be one"
    return f"{said} of at most {_MOST_DIGITS} digits, but one has more. Write a smaller one."


def of_plugin(error: BaseException, arguments: Sequence[str]) -> str | None:
    """The sentence for a launcher's or sweeper's key that it does not know, as Hydra 1.4 raises it; None otherwise."""
    told = "\n".join([str(error), *getattr(error, "__notes__", [])])
    where, unexpected = _FULL_KEY.search(told), _UNEXPECTED.search(told)
    if not isinstance(error, TypeError) or not where or not unexpected:
        return None
    return _of_unknown_key(f"{where[1]}.{unexpected[1]}", arguments)


def _explain(error: BaseException, arguments: Sequence[str]) -> str:
    chain = list(_chain(error))
    text = "\n".join(str(e) for e in chain)
    choice = _NO_CHOICE.search(text)
    if choice and "Available options" in text:
        group, _, name = choice[1].rpartition("/")
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return mistakes.unknown_choice(group, name, options or group_choices(group))
    if "Config group override must be" in text:  # model=null, model=3
        for group, names in texts_of(arguments).items():
            choices = group_choices(group, config_dirs(arguments)) if group in GROUPS else []
            for name in names.split(",") if choices else ():
                if name == "null" and "," in names:
                    return mistakes.nothing_of_group(group, names)
                if name not in choices:
                    return mistakes.unknown_choice(group, name, choices)
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return _of_value_error(error, arguments)
    for e in chain:
        # A law of a sweeper or launcher, which Hydra makes: it tells of the call, ours of the key.
        if type(e).__name__ == "InstantiationException":
            return _of_instantiation(e, arguments)
        if type(e).__name__ == "OverrideParseException":
            return _of_grammar(e, arguments)
    if "Ambiguous value for argument" in text:
        return _of_several_values(text, arguments)
    for e in chain:
        # Hydra tells of the whole override, `engine={a: 1}`; OmegaConf of the key in it.
        if isinstance(e, ConfigKeyError | ConfigAttributeError) and e.full_key:
            node: Any = e.parent_node
            if node is not None and kinds.is_open(node._metadata.ref_type):
                return mistakes.to_be_added(str(e.full_key), _typed(str(e.full_key), arguments))
            return _of_unknown_key(_as_typed(str(e.full_key), arguments), arguments)
    key = _NOT_IN.search(text)
    if key:
        return _of_unknown_key(_as_typed(next(part for part in key.groups() if part), arguments), arguments)
    for e in chain:
        if isinstance(e, OmegaConfBaseException) and e.full_key:
            return _of_value(e, arguments)
    return str(error)


def _of_value_error(error: BaseException, arguments: Sequence[str]) -> str:
    if (index := _NO_INDEX.fullmatch(str(error))) and not _is_ours(error):
        for typed in _keys(arguments):
            above, _, last = typed.rpartition(".")
            if above and last == index[1]:
                return kinds.no_keys_below(above, meaning_of(above), list, False, typed)
    said = str(error)
    for argument in arguments:  # `+pair={lr: 0.1},{lr: 0.2}`
        one = Override.read(argument)
        key = one.key
        if one.sign in ("+", "++") and f"There is no `{key}`" in said and (points := _as_points(argument)):
            return (
                f"There is no `{key}`: keys that vary together need no name. List the points: "
                f"'hydra.sweeper.points=[{','.join(points)}]'."
            )
    return said


_CONFIG = Path(config.__file__).parent


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised by flgo_hydra, or by what it has called."""
    trace, files = error.__traceback__, []
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return any(Path(file).parts[-2:] == ("flgo_hydra", "app.py") or _CONFIG in Path(file).parents for file in files)


def _as_points(argument: str) -> list[str]:
    """Dicts that an override lists as points, each in quotes; none where it is something else."""
    from hydra.errors import HydraException

    try:
        values = list(getattr(Override.read(argument).value, "list", []))  # a sweep's
    except HydraException:
        return []
    if not values or not all(isinstance(value, dict) for value in values):
        return []
    return [f'"{" ".join(override(str(key), item) for key, item in value.items())}"' for value in values]


def _of_instantiation(error: BaseException, arguments: Sequence[str]) -> str:
    """What a launcher, a sweeper or a callback was not made for."""
    if isinstance(error.__cause__, ValueError):
        return str(error.__cause__)
    if isinstance(error.__cause__, TypeError) and (said := of_plugin(error.__cause__, arguments)):
        return said
    where = _FULL_KEY.search(str(error))
    unexpected = _UNEXPECTED.search(str(error))
    if where and unexpected:
        return _of_unknown_key(f"{where[1]}.{unexpected[1]}", arguments)
    said = re.sub(r"^Error in call to target '[^']*':\s*", "", str(error))
    said = re.sub(r", set env var HYDRA_FULL_ERROR=1.*|\nfull_key: \S+", "", said).strip()
    if where and (typed := _typed(f"{where[1]}._target_", arguments)):
        return f"`{typed}` must name a class that can be made of its keys, package.module.Name, but: {said}."
    return f"`{where[1]}`: {said}." if where else said


def _of_grammar(error: BaseException, arguments: Sequence[str]) -> str:
    """An argument that is no override."""
    typed = getattr(error, "override", None) or next((a for a in arguments if not Override.read(a).is_set), "")
    said = mistakes.first_line(error).rstrip(".")
    one = Override.read(str(typed))
    key, value = one.name, one.text
    if value is None and one.sign != "~":
        groups = [group for group in GROUPS if typed in group_choices(group, config_dirs(arguments))]
        advice = f" Did you mean `{groups[0]}={typed}`?" if groups else ""
        return f"`{typed}` must be `key=value`, but it has no `=`.{advice}"
    if key == "hydra.sweeper.points":
        return (
            f"`{typed}` must be a list of points in quotes, but it cannot be read ({said}). Write "
            '\'hydra.sweeper.points=["algorithm=fedprox lr=0.1","lr=0.05"]\', the whole in single quotes.'
        )
    return (
        f"`{typed}` must be `key=value` in Hydra's grammar, but the value {value!r} cannot be read ({said}). A text "
        "with brackets, commas, spaces or quotes stands in quotes, inside those of the shell: \"key='a, b'\"."
    )


def _of_several_values(text: str, arguments: Sequence[str]) -> str:
    found = re.search(r"Ambiguous value for argument '(.*)'$", text, flags=re.MULTILINE)
    typed = found[1] if found else next(iter(arguments), "")
    key, value = Override.read(typed).name, Override.read(typed).text or ""
    listed = setting(arguments, "hydra.sweeper.points")
    if listed is not None and typed in str(listed.text):
        points = ",".join(f'"{key}={one.strip()}"' for one in value.split(","))
        return (
            f"`{typed}` must be one value, as it stands in a point of `hydra.sweeper.points`, but it has several. "
            f"Write a point for each, `hydra.sweeper.points=[{points}]`, or vary it beside the points: `{typed}`. A "
            f"list is written `{key}=[{value}]`."
        )
    return (
        f"`{typed}` must be one value, but it has several. With `-m` each is a run of its own: "
        f"`python -m flgo_hydra -m {typed}`. A list is written `{key}=[{value}]`, a text with commas "
        f"\"{key}='{value}'\"."
    )


def _of_unknown_key(name: str, arguments: Sequence[str]) -> str:
    known = _known_keys(arguments)
    having = [choices for choices, keys in known if choices and name in keys]
    lacking = [choices for choices, keys in known if choices and name not in keys]
    if having and lacking:
        return mistakes.of_other_points(name, lacking[0], having[0])
    if having:  # Hydra composes what is fixed with the defaults, before it looks at points
        one = next(one for one in map(Override.read, arguments) if one.key == name)
        swept = f"{name}=choice({one.text})"
        return f"`{one.write()}` is a key of the choices that vary: give it as one that varies, `{swept}`."
    every = dict.fromkeys(key for _, keys in known for key in keys)
    return mistakes.unknown_key(name, [*GROUPS, *_HYDRA_GROUPS, *every], keys_by_choice())


def _of_value(error: OmegaConfBaseException, arguments: Sequence[str]) -> str:
    """A value that its key's type does not take, or that refers to nothing."""
    key = str(error.full_key)
    if part := _PART.fullmatch(key):  # an item of a list
        parent: Any = error.parent_node
        below = next((typed for typed in _keys(arguments) if typed.startswith(f"{part[1]}.")), None)
        if below is not None:
            return kinds.no_keys_below(part[1], meaning_of(part[1]), list, False, below)
        kind = parent._metadata.ref_type if parent is not None else list
        return kinds.wrong_item(part[1], meaning_of(part[1]), kind, part[2], error.value)
    node: Any = error.child_node if error.child_node is not None else error.parent_node
    is_type = isinstance(error, ValidationError) or type(error).__name__ == "ConfigTypeError"
    if not is_type or node is None:
        return f"`{_typed(key, arguments) or key}`: {mistakes.first_line(error).rstrip('.')}."
    kind, is_optional = node._metadata.ref_type, node._metadata.optional
    below = next((typed for typed in _keys(arguments) if typed.startswith(f"{key}.")), None)
    if below is not None and error.value == {}:
        return kinds.no_keys_below(key, meaning_of(key), kind, is_optional, below)
    typed = _typed(key, arguments)
    if "does not support deletion" in str(error):
        return f"`~{key}`: a key of ours can be set, but not deleted. Set it: `{key}=…`."
    got = error.value
    if got is None and typed is not None and (text := Override.read(typed).text) != "null":  # OmegaConf has not kept it
        got = kinds.Written(text)
    return kinds.wrong_type(key, meaning_of(key), kind, is_optional, got)


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: list[BaseException] = []
    next_error: BaseException | None = error
    while next_error is not None and next_error not in found:
        found.append(next_error)
        yield next_error
        next_error = next_error.__cause__ or next_error.__context__


def _keys(arguments: Sequence[str]) -> list[str]:
    return [Override.read(argument).key for argument in arguments]


def _typed(key: str, arguments: Sequence[str]) -> str | None:
    """The first argument that sets a key."""
    found = (one for one in map(Override.read, arguments) if one.key == key and one.is_set)
    return next((one.write() for one in found), None)


def _as_typed(key: str, arguments: Sequence[str]) -> str:
    """The whole key of the argument that ends in `key`: Hydra may name its last part only."""
    for typed in _keys(arguments):
        if typed == key or typed.endswith("." + key):
            return typed
    return key


def _hydra_choices(group: str) -> list[str]:
    """What may be chosen of a group of Hydra's."""
    return sorted({"basic", *group_choices(group)})


def composed(arguments: Sequence[str]) -> Overridden | None:
    """The config that a command's overrides make, for the help page; None where there are none.

    Of what varies the defaults are shown.

    Raises:
        HydraException: they do not compose.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser = OverridesParser.create()
    typed = [a for a in arguments if Override.read(a).is_set and not a.startswith("-")]
    overrides = [text for text in typed if not parser.parse_override(text).is_sweep_override()]
    if not overrides:
        return None
    with _config_dirs(arguments) as searched:
        cfg: DictConfig = compose("config", overrides=[*searched, *overrides], return_hydra_config=True)
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    values = {}
    for key in mistakes.keys_of(cfg):
        node = content
        for part in key.split("."):
            node = node[part]
        values[key] = node
    choices = {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items()}
    return Overridden(tuple(overrides), choices, values)


@contextlib.contextmanager
def _config_dirs(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Lets Hydra compose our configs and a user's own; yields the override that says where those are."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folders = [f"file://{Path(folder).absolute()}" for folder in config_dirs(arguments)]
    base = {name: value for name, value in hydra_main_arguments().items() if name == "version_base"}
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        yield [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def _known_keys(arguments: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Group choices that were typed, each with the keys of their config, Hydra's own among them, where they compose."""
    from hydra import compose
    from hydra.errors import HydraException

    found: list[tuple[list[str], list[str]]] = []
    with _config_dirs(arguments) as searched:
        for choices in [*_picked(arguments), []]:
            if not choices and found:
                break  # the defaults are for when nothing that was typed composes
            try:
                cfg: DictConfig = compose("config", overrides=[*searched, *choices], return_hydra_config=True)
            except (HydraException, ValueError):  # such as a choice `null`
                continue
            found.append((choices, mistakes.keys_of(cfg)))
    return found


def _picked(arguments: Sequence[str], most: int = 8) -> list[list[str]]:
    """The group choices that were typed, each value of a swept group in turn."""
    typed = [(group, names) for group, names in texts_of(arguments).items() if group in GROUPS]
    choices = [[line_of(group, name) for name in names.split(",")] for group, names in typed]
    longest = max((len(values) for values in choices), default=0)
    return [[values[i % len(values)] for values in choices] for i in range(min(longest, most))]
