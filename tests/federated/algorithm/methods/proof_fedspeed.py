import pytest

from flgo_hydra.federated.algorithm.feddyn import FedDyn
from flgo_hydra.federated.algorithm.fedspeed import FedSpeed

from .by_hand import by_hand
from .federation import Federation
from .proof import Found, Law, Proof


def reference(f: Federation, lam: float, alpha: float, rho: float) -> Found:
    """Sun et al., ICLR 2023, Algorithm 1, the gradient's ascent of length rho."""
    x, servers = f.start, []
    corrections = [{name: 0.0 * p for name, p in x.items()}] * f.num_clients
    for visits in f.rounds("uniform"):
        sent = []
        for visit in visits:
            own, ghat = x, corrections[visit.k]
            for features, labels in visit.batches:

                def loss(p, features=features, labels=labels):
                    return f.loss(p, features, labels)

                first = f.gradient(own, loss)
                length = sum(float((t * t).sum()) for t in first.values()) ** 0.5
                second = f.gradient({name: p + rho * first[name] / length for name, p in own.items()}, loss)
                new = {}
                for name, p in own.items():
                    quasi = (1 - alpha) * first[name] + alpha * second[name]
                    new[name] = p - f.lr * (quasi - ghat[name] + (p - x[name]) / lam)
                own = new
            ghat = {name: t - (own[name] - x[name]) / lam for name, t in ghat.items()}
            corrections[visit.k] = ghat
            sent.append({name: p - lam * ghat[name] for name, p in own.items()})
        x = {name: sum(one[name] for one in sent) / len(sent) for name in x}
        servers.append(x)
    return Found(servers, states=[{"correction": one} for one in corrections])


def hand() -> None:
    # round 1: (-7 - 7.5) / 2 and (-4 - 4.2) / 2, changes 0.725 and 0.41, ghat = -0.3625 and -0.205; sent 1.45 and 0.82
    # round 2, from 1.135: (-1.325 - 1.825) / 2 + 0.3625 and (-1.73 - 1.93) / 2 + 0.205, changes 0.12125 and 0.1625,
    # ghat = -0.423125 and -0.28625; sent 0.12125 + 0.84625 and 0.1625 + 0.5725 beyond
    weights, _, clients = by_hand(FedSpeed, 2, 1, lam=2.0, alpha=0.5, rho=0.1)
    assert weights == pytest.approx([1.135, 1.135 + (0.9675 + 0.735) / 2], abs=1e-12)
    kept = [clients.get(k)["correction"]["weight"].item() for k in (0, 1)]
    assert kept == pytest.approx([-0.423125, -0.28625], abs=1e-12)


PROOF = Proof(
    method=FedSpeed,
    numbers={"lam": 4.0, "alpha": 0.7, "rho": 0.2},
    reference=reference,
    laws={
        "with everyone, rho=0 is FedDyn with alpha = 1 / lam": Law(
            {"rho": 0.0}, {"proportion": 1.0}, same_as=FedDyn, with_numbers={"alpha": 0.25}
        ),
        "with everyone, alpha=0 is FedDyn with its alpha = 1 / lam": Law(
            {"alpha": 0.0}, {"proportion": 1.0, "num_rounds": 5}, same_as=FedDyn, with_numbers={"alpha": 0.25}
        ),
    },
    by_hand=hand,
    paper="Sun et al., ICLR 2023",
    weighting="uniform",
)
