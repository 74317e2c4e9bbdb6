"""Heads are covered with every loss of Keras's, in every way to end a model."""

import keras
import numpy as np
import pytest

import keras_mp
from conformance import discover, head_cases
from conformance.measure import POLICIES

# Takes embeddings that a layer has normalized: no activation is before it.
WITHOUT_ACTIVATION = {"Circle"}


def test_every_loss_has_a_head():
    losses = {
        name
        for name, loss in discover.public("losses").items()
        if isinstance(loss, type) and ("losses", name) not in discover.EXCLUDED
    }
    covered = {case.name for case in head_cases.head_cases()}
    assert losses - covered == WITHOUT_ACTIVATION


YEARS = np.linspace(-2, 2, 256, dtype="float32")[:, None]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("form", head_cases.REGRESSIONS)
@pytest.mark.parametrize("how", ["policy", "compile", "convert"])
def test_predictions_near_2000_are_as_many_as_in_float32(how, form, policy):
    around = policy if how == "policy" else "float32"
    with keras_mp.policy_scope(around):
        model = head_cases.REGRESSIONS[form]((1,))
    if how == "convert":
        keras_mp.convert(model, policy)
    given = {"policy": policy} if how == "compile" else {}
    keras_mp.compile(model, "sgd", "mse", **given)
    predicted = model.predict(YEARS, verbose=0)
    reference = head_cases.REGRESSIONS[form]((1,)).predict(YEARS, verbose=0)
    assert model.compute_dtype == keras.dtype_policies.get(policy).compute_dtype
    assert len(np.unique(predicted)) == len(np.unique(reference)) == len(YEARS)
