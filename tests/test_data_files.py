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


# A batch, of which each part may be several arrays.

PARTS = {"x": ["a", "b"], "y": ["c", "d"], "sample_weight": ["c", "d"]}


def read_batch(path, parts=PARTS, **arrays):
    np.savez(path / "data.npz", **arrays)
    return data_files.read_batch(str(path / "data.npz"), "--data data.npz", parts)


def test_a_part_is_one_array_or_one_for_each_of_its_names(tmp_path):
    found = read_batch(tmp_path, x_b=X, x_a=X, y=Y, y_val=Y, sample_weight=Y)
    assert list(found) == ["x", "y", "sample_weight"]
    assert list(found["x"]) == ["a", "b"]
    assert found["x"]["a"].dtype == "float32" and found["y"].shape == (3,)
    found = read_batch(tmp_path, x=X, y_c=Y, y_d=Y)
    assert list(found) == ["x", "y"] and list(found["y"]) == ["c", "d"]
    arrays = {"x": X, "y": Y, "x_val": X}
    found = read_batch(tmp_path, dict.fromkeys(PARTS, []), **arrays)
    assert list(found) == ["x", "y"]


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"y": Y}, "the array x, or instead x_a, x_b\n.* y: x missing"),
        ({"x_a": X, "y": Y}, "x_a, y: x_b missing"),
        ({"x_a": X, "x_e": X, "y": Y}, "x_b missing, x_e unknown"),
        ({"x_a": X, "x_b": X, "x_e": X, "y": Y}, ": x_e unknown"),
        ({"x": X, "x_b": X, "y": Y}, "x and x_b are not for one batch"),
        ({"x": X, "y_c": Y}, "y_d missing"),
        ({"x": X, "y": Y, "sample_weight_c": Y}, "sample_weight_d missing"),
        ({"x_a": X, "x_b": X[:2], "y": Y}, "3 in x_a and 2 in x_b"),
        ({"x": X, "y_c": Y, "y_d": Y[:2]}, "3 in x and 2 in y_d"),
        ({"x_a": X, "x_b": X.astype("str"), "y": Y}, "numbers .* in x_b"),
    ],
)
def test_what_is_refused_of_a_batch(tmp_path, arrays, expected):
    with pytest.raises(UserError, match=expected) as error:
        read_batch(tmp_path, **arrays)
    assert "--data data.npz" in str(error.value)


def test_names_are_not_told_where_there_are_none(tmp_path):
    with pytest.raises(UserError, match="the array x\n.* x_a, y: x missing"):
        read_batch(tmp_path, dict.fromkeys(PARTS, []), x_a=X, y=Y)
