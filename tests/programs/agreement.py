"""Compares what a run with keras_mp reported with float32's."""

import re

import numpy as np

# The first reason why numbers differ is that activations and weights are rounded to 11
# bits (float16) or 8 bits (bfloat16). A program rounds some ten times in a row, and
# its loss is a mean over many numbers: eight roundings leave room.
ROUNDINGS = {"mixed_float16": 8 * 2**-11, "mixed_bfloat16": 8 * 2**-8}
# Noise that is drawn in 16 bits is other noise: only the size of a loss is the same.
NOISE = 0.5


def check(program, policy, ours, truth, plain=None):
    """Check that ``ours`` reports what ``truth``, the run in float32, does.

    ``plain`` is the run with Keras alone under ``policy``, or None if there is none.
    """
    tolerance = NOISE if program.noise else ROUNDINGS[policy]
    known = truth.warnings + (plain.warnings if plain else [])
    _check_warnings(program, policy, ours, known)
    _check_numbers(ours.logs, truth.logs, tolerance)
    _check_numbers(ours.evaluated, truth.evaluated, tolerance)
    if not program.noise:
        _check_predictions(ours.predictions, truth.predictions, tolerance)
    # The gradients are rounded too, and small ones cancel: only their size is the same.
    assert truth.moved > 0
    assert 0.5 * truth.moved < ours.moved < 2 * truth.moved


def _check_numbers(ours, truth, tolerance):
    assert set(truth) <= set(ours)
    for name, expected in truth.items():
        np.testing.assert_allclose(
            ours[name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )


def _check_predictions(ours, truth, tolerance):
    assert len(ours) == len(truth)
    for mine, expected in zip(ours, truth, strict=True):
        assert mine.shape == expected.shape
        size = np.sqrt(np.mean(expected**2))
        # A single number has all roundings, of which a mean has less: four times that.
        np.testing.assert_allclose(mine, expected, atol=4 * tolerance * size)


def _check_warnings(program, policy, ours, known):
    """Check that keras_mp warns of nothing but islands where Keras cannot train."""
    known = {_text(each) for each in known}
    news = [each for each in ours.warnings if _text(each) not in known]
    if program.says:
        news = [each for each in news if not re.search(program.says, each)]
    if policy in program.fails:
        news = [each for each in news if not _names_island(each, ours.layers)]
    assert not news, news


def _names_island(warning, layers):
    return "float32 island" in warning and any(name in warning for name in layers)


def _text(warning):
    """Return a warning without the numbers that differ from run to run."""
    return re.sub(r"\d+", "0", warning)
