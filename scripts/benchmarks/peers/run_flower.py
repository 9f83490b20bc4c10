"""Flower: its simulation (Ray, one actor) on the reference workload."""

import logging
import os
from importlib.metadata import version

import torch
import workload as w
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

given = w.arguments()
os.environ.update(
    FLGO_HYDRA_MODEL=given.model,
    FLGO_HYDRA_THREADS=str(given.threads),
    FLWR_TELEMETRY_ENABLED="0",
    RAY_USAGE_STATS_ENABLED="0",
)
torch.set_num_threads(given.threads)
logging.getLogger("flwr").setLevel(logging.ERROR)
_, _, x_test, y_test = map(torch.from_numpy, w.arrays())
server, laps, seen = ServerApp(), [], []


@server.main()
def main(grid: Grid, context: Context) -> None:
    net = w.torch_model(given.model)

    def evaluate(round_num, arrays):
        net.load_state_dict(arrays.to_torch_state_dict())
        with torch.no_grad():
            seen.append((net(x_test).argmax(1) == y_test).float().mean().item())
        if round_num == 0:  # before training
            laps.append(w.Stopwatch())
        else:
            laps[0].lap()
        return MetricRecord({"accuracy": seen[-1]})

    strategy = FedAvg(
        fraction_train=w.COHORT / w.NUM_CLIENTS,
        fraction_evaluate=0.0,
        min_train_nodes=w.COHORT,
        min_available_nodes=w.NUM_CLIENTS,
    )
    arrays = ArrayRecord(net.state_dict())
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=given.rounds, evaluate_fn=evaluate)


if __name__ == "__main__":
    import flower_client

    ray = {"num_cpus": 1, "num_gpus": 0, "logging_level": "error", "log_to_driver": False, "include_dashboard": False}
    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=w.NUM_CLIENTS,
        backend_name="ray",
        backend_config={"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    laps[0].tell(version("flwr"), seen[-1])
