"""Records a function over tensors and replays it in place, as a flat program or a CUDA graph. It knows nothing of
federated learning.

    tape        records the operations of a call
    operations  what each operation reads, writes and views
    needed      drops what no result depends on
    dependence  which parts of a result depend on which parts of an input
    linear      sums with products, taken straight into the state
    in_place    the order in which a program writes over its state
    arena       memory that intermediates share
    writer      writes the program as Python
    program     all of that: `compile_program`
    graph       a function as a CUDA graph
"""
