"""Files that commands load: what is refused, and how it is explained."""

import keras
import pytest

from keras_mp import model_files
from keras_mp.terminal import UserError


@pytest.fixture
def saved(tmp_path):
    path = str(tmp_path / "model.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(path)
    return path


def test_a_model_is_loaded(saved):
    assert model_files.load(saved, saved, "check it", "f").output_shape == (None, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("absent.keras", "no such file"), ("other.keras", "not in this format")],
)
def test_what_is_no_model_is_refused(tmp_path, name, expected):
    (tmp_path / "other.keras").write_text("something else")
    with pytest.raises(UserError, match=expected):
        model_files.load(str(tmp_path / name), "--model", "check it", "f")


def test_an_error_of_keras_is_explained(saved):
    def loader(path):
        raise ValueError("first \x1b[1mbold\x1b[0m\n  second")

    with pytest.raises(UserError) as caught:
        model_files.load(saved, "--model m", "check it", "keras_mp.lint", loader)
    message = str(caught.value)
    assert "--model m" in message and "ValueError: first bold second" in message
    assert "check it in a script of your own, with keras_mp.lint" in message
