"""FedAvg: the server's model becomes the mean of the clients' models, weighted by their numbers of samples.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017, Algorithm 1.
https://arxiv.org/abs/1602.05629
"""

from flgo_hydra.federated.algorithm.base import Algorithm


class FedAvg(Algorithm):
    """w_{t+1} = sum_k (n_k / n) w_k over the cohort: every step of the base."""
