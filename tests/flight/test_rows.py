"""Of a batch that is too large, a part is kept that overflows by itself."""

import numpy as np
import pytest

from keras_mp.flight import fitting
from keras_mp.recording import Batch

ROW = 8 * 8 + 8  # bytes of x and of y


def batch(rows=64, bad=()):
    x = np.zeros((rows, 8))
    x[list(bad)] = np.inf
    return Batch({"x": x}, np.arange(rows), None)


def overflows(batch):
    return bool(np.isinf(batch.x["x"]).any())


def test_a_batch_that_fits_is_kept_as_it_is():
    given = batch()
    assert fitting(given, 64 * ROW, overflows) == (given, None)


@pytest.mark.parametrize("bad", [0, 9, 31, 32, 63])
def test_the_row_that_overflows_is_kept(bad):
    part, (start, stop) = fitting(batch(bad=[bad]), 5 * ROW, overflows)
    assert start <= bad < stop and stop - start == 4
    assert part.y.tolist() == list(range(start, stop))
    assert overflows(part)


def test_no_part_that_overflows():
    assert fitting(batch(), 5 * ROW, overflows) == (None, None)


def test_not_even_one_row_fits():
    assert fitting(batch(bad=[5]), ROW - 1, overflows) == (None, None)
