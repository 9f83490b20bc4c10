"""FLGo's first documentation example: FedAvg with five learning rates, side by side."""

import flgo_hydra as flgo
from flgo_hydra.federated.algorithm import fedavg

task = "mnist5k"
runner_args = [
    {"task": task, "algorithm": fedavg, "option": {"learning_rate": 0.01 * i, "num_rounds": 5}} for i in range(1, 6)
]
results = flgo.multi_init_and_run(runner_args)
for result in results:
    print(f"{result['option']['learning_rate']:.2f}", result["val_loss"][-1], result["test_accuracy"][-1])
