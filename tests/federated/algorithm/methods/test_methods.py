"""Every method of `flgo_hydra.federated.algorithm`, proven: each `proof_<name>.py` here is held to the same."""

import importlib
from pathlib import Path

import pytest

from flgo_hydra.config.option import OptionConf

from .federation import BACKENDS
from .proof import Proof, hold_law, hold_permutation, hold_reference

PROOFS: dict[str, Proof] = {
    path.stem.removeprefix("proof_"): importlib.import_module(f".{path.stem}", __package__).PROOF
    for path in sorted(Path(__file__).parent.glob("proof_*.py"))
}


@pytest.mark.parametrize("name", PROOFS)
def test_by_hand(name):
    PROOFS[name].by_hand()


_TRIED = [*((0, backend) for backend in BACKENDS), (1, "vmap"), (2, "recorded"), (2, "fused")]
"""Federations by number, and backends: each of both; `scripts/methods` tries them all."""


@pytest.mark.parametrize(
    "name, number, backend",
    [
        pytest.param(name, *tried, marks=[] if tried == (0, "loop") else pytest.mark.slow)
        for name, proof in PROOFS.items()
        for tried in _TRIED
        if tried[1] in proof.backends
    ],
)
def test_as_the_paper_says(name, number, backend):
    hold_reference(PROOFS[name], PROOFS[name].federations()[number], backend)


@pytest.mark.parametrize("name, law", [(name, law) for name, proof in PROOFS.items() for law in proof.laws])
def test_law(name, law):
    hold_law(PROOFS[name], PROOFS[name].laws[law])


@pytest.mark.parametrize("name", PROOFS)
def test_the_order_of_clients_changes_nothing(name):
    hold_permutation(PROOFS[name])


@pytest.mark.parametrize("name, law", [(name, law) for name, proof in PROOFS.items() for law in proof.laws])
def test_numbers_that_make_it_another_method_are_said(name, law):
    proof = PROOFS[name]
    method, law = proof.method(), proof.laws[law]
    if law.same_as is not None and law.numbers and not law.settings:
        assert method.caveats(OptionConf(**proof.option), {**proof.numbers, **law.numbers})
    assert method.caveats(OptionConf(**proof.option), proof.numbers) == []
