"""Arrays of an ``.npz`` file: what is read, and what is refused and why."""

import numpy as np
import pytest

from keras_mp import data_files
from keras_mp.terminal import UserError

X, Y = np.ones((3, 2)), np.arange(3)


def read(path, together=(), **arrays):
    np.savez(path / "data.npz", **arrays)
    return data_files.read(str(path / "data.npz"), "--data data.npz", together)


def test_floats_become_float32_and_others_stay(tmp_path):
    found = read(tmp_path, x=X, y=Y, other=X)
    assert {name: str(each.dtype) for name, each in found.items()} == {
        "x": "float32",
        "y": "int64",
    }


def test_what_float32_does_not_hold_is_infinite(tmp_path):
    assert np.isinf(read(tmp_path, x=X * 1e300, y=Y)["x"]).all()


@pytest.mark.parametrize("given", [{}, {"w": Y}])
def test_a_further_array_may_be_there(tmp_path, given):
    assert set(read(tmp_path, ["w"], x=X, y=Y, **given)) == {"x", "y", *given}


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"x": X}, "y missing"),
        ({"x": X, "y": Y, "a": Y}, "a and b both or neither"),
        ({"x": X, "y": np.array([{}])}, "dtype object"),
        ({"x": X, "y": np.array(["a"])}, "dtype <U1"),
        ({"x": X[:0], "y": Y}, "at least one sample in x"),
    ],
)
def test_what_is_refused(tmp_path, arrays, expected):
    with pytest.raises(UserError, match=expected) as error:
        read(tmp_path, ["a", "b"], **arrays)
    assert "--data data.npz" in str(error.value)


def test_arrays_of_different_samples(tmp_path):
    arrays = {"x": X, "y": Y[:2]}
    with pytest.raises(UserError, match="3 in x and 2 in y"):
        data_files.check_same_samples("--data data.npz", "x", "y", arrays)
