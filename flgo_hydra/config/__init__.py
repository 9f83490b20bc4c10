"""Every schema of flgo_hydra, its defaults and its laws.

A field's comment is its documentation: `python -m flgo_hydra --help` prints it. A law is checked in
`__post_init__`, which runs where a composed config becomes a dataclass (`compose.to_conf`), for every point of a
grid before the first one trains. Nobody changes one of these objects afterwards.

`_target_` names what a choice stands for, ours or a user's own: `package.module.name`, imported by `reference.py`.
"""
