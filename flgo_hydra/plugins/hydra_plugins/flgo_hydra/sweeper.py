"""Where Hydra looks for sweepers. Hydra 1.3 runs this module twice: the real class lies elsewhere."""

from flgo_hydra.study import sweeper


class StudySweeper(sweeper.StudySweeper):
    """`hydra/sweeper=flgo_hydra`"""
