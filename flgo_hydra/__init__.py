"""Federated-learning experiments as a grid: Hydra composes it, every point runs, Optuna's study says which won."""

__version__ = "0.1.0"
