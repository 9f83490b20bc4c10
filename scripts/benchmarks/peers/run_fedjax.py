"""FedJAX: its FedAvg, compiled with jax.jit, on the reference workload."""

import os
from importlib.metadata import version

import workload as w

given = w.arguments()
if given.threads == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree.map  # fedjax 0.0.17 is older than the JAX that runs here
import fedjax  # noqa: E402

x_train, y_train, x_test, y_test = w.arrays()
rng = np.random.RandomState(0)


def layer(*shape):
    bound = 1 / np.sqrt(np.prod(shape[:-1]))
    weight, bias = rng.uniform(-bound, bound, shape), rng.uniform(-bound, bound, shape[-1])
    return jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)


def convolve(params, x):
    weight, bias = params
    x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
    return jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


if given.model == "mlp":
    start = [layer(784, 200), layer(200, 10)]
else:
    start = [layer(5, 5, 1, 32), layer(5, 5, 32, 64), layer(3136, 512), layer(512, 10)]


def apply(params, x):
    if given.model == "cnn":
        x = convolve(params[1], convolve(params[0], x.reshape(-1, 28, 28, 1))).reshape(x.shape[0], -1)
    (w0, b0), (w1, b1) = params[-2:]
    return jax.nn.relu(x @ w0 + b0) @ w1 + b1


def loss(params, batch):
    log_p = jax.nn.log_softmax(apply(params, batch["x"]))
    return -jnp.take_along_axis(log_p, batch["y"][:, None], 1).mean()


fed_avg = fedjax.algorithms.fed_avg.federated_averaging(
    lambda params, batch, key: jax.grad(loss)(params, batch),
    fedjax.optimizers.sgd(w.LR),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=w.BATCH, num_epochs=w.EPOCHS, drop_remainder=False, seed=1),
)
rows = [slice(k * w.PER_CLIENT, (k + 1) * w.PER_CLIENT) for k in range(w.NUM_CLIENTS)]
clients = {b"%03d" % k: {"x": x_train[part], "y": y_train[part]} for k, part in enumerate(rows)}
data = fedjax.InMemoryFederatedData(clients)
sampler = fedjax.client_samplers.UniformGetClientSampler(data, num_clients=w.COHORT, seed=1)
x_test, y_test = jnp.asarray(x_test), jnp.asarray(y_test)
accuracy = jax.jit(lambda params: (apply(params, x_test).argmax(1) == y_test).mean())
state = fed_avg.init(start)
watch = w.Stopwatch()
for _ in range(given.rounds):
    state, _ = fed_avg.apply(state, sampler.sample())
    last = float(accuracy(state.params))
    watch.lap()
watch.tell(version("fedjax"), last)
