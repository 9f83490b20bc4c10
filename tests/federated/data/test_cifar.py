"""A pickle from elsewhere: numbers come in, nothing is run, and no memory is taken that the file does not fill."""

import pickle
import struct

import numpy as np
import pytest

from flgo_hydra.federated.data import cifar

NAMES = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def dtype(code=b"u1", state=b"(I3\nS'|'\nNNNI-1\nI-1\nI0\nt"):
    return b"cnumpy\ndtype\n(S'" + code + b"'\nI0\nI1\ntR" + (state + b"b" if state else b"")


def array(shape=b"(I2\nI3072\nt", of=None, content=6144):
    raw = b"B" + struct.pack("<I", content) + bytes(content) if isinstance(content, int) else content
    return NAMES + b"(I1\n" + shape + (dtype() if of is None else of) + b"I00\n" + raw + b"tb"


def batch(data):
    return b"(dS'data'\n" + data + b"sS'labels'\n(I0\nI1\nlsS'batch_label'\nS'x'\ns."


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_batch_as_numpy_wrote_it(tmp_path):
    images, labels = cifar.read(write(tmp_path / "b", batch(array())), "labels", 10)
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [0, 1]


def test_the_order_of_bytes_and_of_axes(tmp_path):
    labels = np.array([[1, 258], [3, 4]], dtype=">i2", order="F")
    path = write(tmp_path / "b", pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 4}, protocol=2))
    with pytest.raises(ValueError, match="_codecs.encode"):  # Python 3 writes bytes as a call, in old protocols
        cifar.read(path, "labels", 10)
    stood = cifar._Array()
    kind = cifar._Dtype("i2")
    kind.__setstate__((3, ">", None, None, None, -1, -1, 0))
    stood.__setstate__((1, (2, 2), kind, True, labels.tobytes(order="F")))
    assert stood.make().tolist() == labels.tolist()


@pytest.mark.parametrize(
    "data",
    [
        array(of=dtype(b"O8")),  # bytes of the file would be taken for addresses of objects
        array(of=dtype(state=b"(I3\nS'|'\nNNNI-1\nI-1\nI63\nt"), content=6143),
        array(of=dtype(b"V8")),
        array(of=dtype(state=b"(I3\nS'|'\nN(S'a'\nt(dS'a'\n(" + dtype() + b"I0\ntstI8\nI1\nI27\nt")),
        array(of=dtype(b"u1,O")),
        array(shape=b"(I4611686018427387904\nI4\nt"),  # a product that overflows to zero
        array(shape=b"(I-2\nI-3072\nt"),
        array(shape=b"(I2\nI4000\nt"),
        array(shape=b"I6144\n"),
        array(content=b"(I1\nl"),
        array(content=b"S'" + b"x" * 6144 + b"'\n")[:-2] + b"b",
        NAMES,  # never given its content
        b"cnumpy\nndarray\n(I100000000000\ntR",
        b"cnumpy\nndarray\n",
        b"cnumpy\nndarray\n(I1\n(I1\nt" + dtype() + b"I00\nS'x'\ntb",  # a state for the class
        b"cnumpy.core.multiarray\n_reconstruct\n(N(dS'__code__'\nNstb",  # and for the function
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR",
        b"\x96" + struct.pack("<Q", 2**40),  # a byte array that says it is a terabyte long
        b"\x8e" + struct.pack("<Q", 2**40),  # bytes, the same
        b"r" + struct.pack("<I", 2**32 - 1),  # a place in the memo
        b"(" * 200000 + b"t" * 200000,
        b"\x95" + struct.pack("<Q", 2**60),  # a frame
        b"cbuiltins\neval\n(S'1'\ntR",
        b"P1\n",
    ],
)
def test_what_no_array_needs_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match=r"^\S*b( must|: )"):
        cifar.read(write(tmp_path / "b", batch(data)), "labels", 10)


def test_a_list_of_lists_is_refused(tmp_path):
    doubled = b"(I0\nI0\nlp1\n0" + b"".join(b"(g%d\ng%d\nlp%d\n0" % (i, i, i + 1) for i in range(1, 60)) + b"g60\n"
    content = b"(dS'data'\n" + array() + b"sS'labels'\n" + doubled + b"s."
    with pytest.raises(ValueError, match="a list of integers"):  # 2^60 numbers, in 700 bytes
        cifar.read(write(tmp_path / "b", content), "labels", 10)


def test_any_bytes_give_a_batch_or_one_sentence(tmp_path):
    good = batch(array())
    rng = np.random.default_rng(0)
    head = len(good) - 6144  # most changes go to where the pickle's program is
    path = tmp_path / "b"
    num_read = 0
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(head)) if rng.random() < 0.9 else int(rng.integers(len(bad)))
            at = at if at < head - 80 else len(bad) - 1 - at % 80
            change = rng.integers(3)
            if change == 0:
                bad[at] = int(rng.integers(256))
            elif change == 1:
                del bad[at : at + int(rng.integers(1, 9))]
            else:
                bad[at:at] = rng.bytes(int(rng.integers(1, 9)))
        path.write_bytes(bytes(bad))
        try:
            images, labels = cifar.read(path, "labels", 10)
        except ValueError as error:
            assert str(error).startswith(str(path))
        else:
            num_read += 1
            assert images.dtype == np.uint8 and images.shape == (len(labels), 3, 32, 32)
    assert 0 < num_read < 1500
