"""A rule matches a class, or in full a name or a run of names in a path."""

import pytest
from keras import layers

from keras_mp import precision_lists


@pytest.mark.parametrize(
    ("rule", "path", "expected"),
    [
        ("head", "model/head", True),
        ("model", "model/encoder/head", True),
        ("encoder/head", "model/encoder/head", True),
        ("model/encoder", "model/encoder/head", True),
        ("model/head", "model/encoder/head", False),
        ("model/.*/head", "model/a/b/head", True),
        ("enc", "model/encoder/head", False),
        ("coder/head", "model/encoder/head", False),
        ("a|b", "model/b", True),
        (layers.Dense, "anything", True),
        (layers.Layer, "anything", True),
        (layers.Conv1D, "anything", False),
    ],
)
def test_rule_matches(rule, path, expected):
    assert precision_lists.matches(rule, layers.Dense(2), path) is expected
