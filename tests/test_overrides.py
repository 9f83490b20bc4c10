"""Python values survive Hydra's grammar, and nobody else takes overrides apart."""

import ast
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import flgo_hydra
from flgo_hydra.overrides import Override, as_text, override, setting, texts_of, unquoted, varied

_PACKAGE = Path(flgo_hydra.__file__).parent


@pytest.mark.parametrize(
    "line, sign, key, text",
    [
        ("lr=0.1", "", "lr", "0.1"),
        ("+task/partition@a.b=iid", "+", "task/partition@a.b", "iid"),
        ("++a.b=[1,2]", "++", "a.b", "[1,2]"),
        ("~lr", "~", "lr", None),
        ("~lr=1", "~", "lr", "1"),
        ("note='a=b'", "", "note", "'a=b'"),
        ("note=", "", "note", ""),
        ("no override", "", "no override", None),
        ("", "", "", None),
    ],
)
def test_a_line_is_taken_apart_and_put_together(line, sign, key, text):
    one = Override.read(line)
    assert (one.sign, one.key, one.text, one.name, one.is_set) == (sign, key, text, sign + key, text is not None)
    assert one.write() == line


def test_several_lines():
    lines = ["lr=0.1", "+seed=1", "seed=2", "~seed", "seeds=3"]
    assert texts_of(lines) == {"lr": "0.1", "+seed": "1", "seed": "2", "~seed": "", "seeds": "3"}
    last = setting(lines, "seed")  # Hydra sets one after the other
    assert last is not None and last.value == 2
    assert setting(lines, "see") is None and setting(["~seed"], "seed") is None
    assert varied("+x", [1, "a,b", None]) == "+x=1,'a,b',null"


_BITS = [
    *("a", "B", "_", "1", " ", "  ", "'", '"', "\\", ",", "=", "$", "${x}", "${", "{", "}", "[", "]", "(", ")", ":"),
    *("é", "日", "\n", "\t", "null", "true", "nan", "inf", "1e-3", "-", "+", ".", "/", "~", "@", "#", "%", "*", "?"),
    *("|", ";", "<", "!", "&", "^", "`", "interval(0,1)", "choice(a,b)"),
]
_SCALARS = [
    *(None, True, False, 0, -1, 10**20, 0.1, -0.0, 3.0, 1e-30, 1e22, 5e-324, math.inf, -math.inf, math.nan),
    *("", "Null", "./mnist_iid", "/a/b:c", "ends in \\", "\\\n", "\\'", "it's", 'say "x"'),
]
_KEYS = ["a", "b_c", "_x1", "True_", "e1", 0, -7]


def _value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(_SCALARS)
    if kind < 4:
        return "".join(rng.choice(_BITS) for _ in range(rng.randrange(1, 6)))
    if kind == 4:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(_KEYS): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def test_what_is_written_is_read_again_alone_and_in_a_sweep():
    rng = random.Random(0)
    parser = OverridesParser.create()
    values = [*_SCALARS, *(_value(rng) for _ in range(300))]
    for value, other in zip(values, values[1:], strict=False):
        assert repr(Override.read(override("key", value)).value) == repr(value)  # 1, 1.0, -0.0, nan and True differ
        sweep = parser.parse_override(varied("key", [value, other]))
        read = [parser.parse_override(f"key={text}").value() for text in sweep.sweep_string_iterator()]
        assert repr(read) == repr([value, other])
        if isinstance(value, str):
            assert unquoted(as_text(value)) in (value, None)


@pytest.mark.parametrize("text, said", [("'it\\'s'", "it's"), ('"a\'b"', "a'b"), ("'a','b'", None), ("a", None)])
def test_quotes_are_taken_off(text, said):
    assert unquoted(text) == said


def test_numbers_of_numpy_are_numbers():
    assert as_text(np.float64(0.5)) == "0.5" and as_text(np.int64(3)) == "3" and as_text(np.array([1, 2])) == "[1,2]"


def test_what_no_config_holds_is_refused():
    with pytest.raises(ValueError, match="cannot hold .* a object"):
        as_text(object())


@pytest.mark.parametrize("key", ["a b", "é", "1", "true", "Null", "nan", "", None, 0.5])
def test_what_no_dict_of_hydras_has_as_key_is_refused(key):
    """It would be read as something else, a number for a text, or not at all."""
    with pytest.raises(ValueError, match="A key of a config is a word of letters, digits and _ .* but got"):
        as_text({key: 1})


# Files that cut at "=" what is no override.
_CUT = {
    "overrides.py": "the one place",
    "flags.py": "flags of the command line, `--config-dir=mine`",
    "composer.py": "Hydra's own rule for `hydra.job.override_dirname`",
}
_CUTTING = {
    *("partition", "rpartition", "split", "rsplit", "startswith", "endswith", "removeprefix", "removesuffix"),
    *("find", "rfind", "index", "rindex", "replace", "strip", "lstrip", "rstrip", "count", "match", "fullmatch"),
}


def _end(node: ast.AST) -> str:
    """The constant text that an expression ends in."""
    last = node.values[-1] if isinstance(node, ast.JoinedStr) and node.values else node
    return str(last.value) if isinstance(last, ast.Constant) and isinstance(last.value, str) else ""


def _cuts(source: str) -> Iterator[int]:
    """Lines where a text is cut, or looked into, at "=", or where its sign is."""
    for node in ast.walk(ast.parse(source)):
        looked_for: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CUTTING:
            looked_for = node.args[:1]
        elif isinstance(node, ast.Compare):
            looked_for = [node.left, *node.comparators]
        of_sign = isinstance(node, ast.Call) and any(_end(one) in ("+", "~", "+~") for one in looked_for)
        if of_sign or any(_end(one).endswith("=") for one in looked_for):
            yield node.lineno


@pytest.mark.parametrize(
    "source, is_cut",
    [
        ("a.partition('=')[0]", True),
        ("a.split('=', 1)", True),
        ("a.startswith(f'{key}=')", True),
        ("a.startswith('hydra.searchpath=')", True),
        ("'=' in a", True),
        ("a[0] == '='", True),
        ("a.lstrip('+~')", True),
        ("a.startswith('~')", True),
        ("one.sign == '~'", False),
        ("a.partition(':')", False),
        ("f'`{key}={value}` is wrong'", False),
        ("a == 'hydra/launcher=basic'", False),
    ],
)
def test_the_rule_itself(source, is_cut):
    assert bool(list(_cuts(source))) == is_cut


def test_nobody_else_cuts_at_the_equals_sign():
    files = [path for path in sorted(_PACKAGE.rglob("*.py")) if "conf" not in path.relative_to(_PACKAGE).parts]
    found = {
        path.relative_to(_PACKAGE).as_posix(): lines
        for path in files
        if (lines := list(_cuts(path.read_text(encoding="utf-8"))))
    }
    assert {name: lines for name, lines in found.items() if name not in _CUT} == {}, "use overrides.Override"
    assert set(_CUT) == set(found)  # no exception without a reason
