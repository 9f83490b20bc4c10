"""FLGo's second documentation example: FedAvg against FedProx, and a plot of the test loss."""

import matplotlib.pyplot as plt

import flgo_hydra as flgo
from flgo_hydra.federated.algorithm import fedavg, fedprox

task = {"name": "mnist5k", "partition": "dirichlet"}
option = {"num_rounds": 20, "learning_rate": 0.1, "num_steps": 10, "proportion": 0.1}
runner_args = [{"task": task, "algorithm": algorithm, "option": option} for algorithm in (fedavg, fedprox)]
results = flgo.multi_init_and_run(runner_args)
for result in results:
    plt.plot(range(len(result["test_loss"])), result["test_loss"], label=result["option"]["algorithm"])
plt.xlabel("communication round")
plt.ylabel("test loss")
plt.legend()
plt.savefig("compare_algorithms.png")
