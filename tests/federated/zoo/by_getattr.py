"""A module of the zoo's that makes up a name."""

calls = 0


def __getattr__(name):
    global calls
    if name != "made_up":
        raise AttributeError(name)
    calls += 1
    return calls
