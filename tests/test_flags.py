import pytest
from hydra._internal.utils import get_args_parser

from flgo_hydra.flags import in_order
from flgo_hydra.help import typed_keys


@pytest.mark.parametrize(
    "typed, ordered",
    [
        ("lr=1 -m seed=2", "-m lr=1 seed=2"),
        ("lr=1 --config-dir mine seed=2", "--config-dir mine lr=1 seed=2"),
        ("lr=1 --config-dir=mine", "--config-dir=mine lr=1"),
        ("lr=1 --multi", "--multi lr=1"),
        ("lr=1 --info", "--info lr=1"),
        ("lr=1 --info defaults seed=2", "--info defaults lr=1 seed=2"),
        ("--info lr=1", "--info lr=1"),
        ("-c job lr=1", "-c job lr=1"),
        ("~lr +a=1 -- -x", "~lr +a=1 -x"),
        ("-0.1", "-0.1"),  # no flag; Hydra says what an override is
    ],
)
def test_flags_come_first(typed: str, ordered: str) -> None:
    assert in_order(typed.split(), get_args_parser(), typed_keys()) == ordered.split()


@pytest.mark.parametrize(
    "typed, message",
    [
        ("--lr=0.1", "`lr=0.1`"),
        ("--lr -0.1", "`lr=-0.1`"),
        ("--lr", "`lr=…`"),
        ("--task.num-clients 3", "`task.num_clients=3`"),
        ("-seed 3", "`seed=3`"),
        ("--rounds 3", "Did you mean `num_rounds=3`?"),
        ("--config_dir x", "Did you mean `--config-dir`?"),
        ("--zzz", "There is no flag `--zzz`. `python -m flgo_hydra --help` lists keys and flags."),
        ("-c", "`-c` must be followed by a value"),
        ("--info=x", "`--info` must be one of all, "),
    ],
)
def test_wrong_flags(typed: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        in_order(typed.split(), get_args_parser(), typed_keys())
    assert message in str(raised.value)
