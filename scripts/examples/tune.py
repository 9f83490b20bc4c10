"""FLGo's third documentation example: the best learning rate and number of local steps, then with early stop."""

import flgo_hydra as flgo
from flgo_hydra.federated.algorithm import fedavg

task = "mnist5k"
option = {"learning_rate": [0.1, 0.01, 0.05], "num_steps": [1, 5], "num_rounds": 20}
optimal = flgo.tune(task, fedavg, option)
print(optimal["learning_rate"], optimal["num_steps"], optimal.value, optimal.round)

# As many rounds as each deserves: until 10 in a row bring nothing better.
option = {"learning_rate": [0.1, 0.01], "num_steps": 5, "num_rounds": 300, "early_stop": 10}
optimal = flgo.tune(task, fedavg, option)
print({run.overrides: (run.status, run.result.last_round) for run in optimal.sweep})
