"""What models of the zoo keep in a module that is not theirs."""

import numpy as np

STATE = {"calls": 0}
rng = np.random.default_rng(5)


def forget():
    global rng
    STATE["calls"] = 0
    rng = np.random.default_rng(5)


def warm(outputs):
    STATE["calls"] += 1
    return outputs * min(1.0, STATE["calls"] / 20)
