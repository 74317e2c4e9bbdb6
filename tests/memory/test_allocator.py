"""Best fit, as TensorFlow does it."""

from keras_mp.memory import allocator


def test_best_fit_blocks():
    blocks = allocator.Blocks()
    first = blocks.take(2**20)  # regions start with 2 MiB
    second = blocks.take(2**20)
    assert (first, second) == (0, 2**20)
    blocks.give_back(first)
    assert blocks.take(2**19 + 256) == first  # not split: the block is not twice that
    assert blocks.in_use == 2**21
    assert blocks.take(3 * 2**20) > second
    assert blocks.resident() == 2**21 + 3 * 2**20
