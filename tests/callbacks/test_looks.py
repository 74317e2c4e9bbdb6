"""Callbacks that look at batches change nothing of training, bit for bit."""

import json
import warnings

import numpy as np
import pytest
from support.processes import make_strategy, run_alone
from support.updates import assert_same
from support.watched import LAYERS, Coarse, compiled, data, fit, state

from keras_mp.callbacks import NumericsMonitor, ShadowCheck

pytestmark = pytest.mark.long

WITH_WEIGHTS = [path for path in LAYERS if not path.endswith("drop")]


@pytest.mark.every(7)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 4}],
    ids=["plain", "eager", "jit", "several"],
)
def test_training_is_the_same_bit_for_bit(policy, options, tmp_path):
    # The last batch of an epoch is smaller, for XLA, which takes long, once.
    short = "jit_compile" in options and policy != "mixed_float16"
    rows = 20 if short else 22
    alone = compiled(policy, **options)
    expected = fit(alone, [], rows)
    monitor = NumericsMonitor(2, csv=tmp_path / "m.csv", log_dir=tmp_path)
    check = ShadowCheck(2)
    model = compiled(policy, **options)
    # A healthy run: a warning would fail the test.
    assert fit(model, [monitor, check], rows) == expected
    assert_same(state(model), state(alone))
    steps = 3 * -(-rows // 4)
    for each in monitor, check:
        assert [look.step for look in each.history] == list(range(2, steps + 1, 2))
    assert list(monitor.history[0].layers) == LAYERS
    assert list(check.history[0].layers) == WITH_WEIGHTS


@pytest.mark.every(2)
@pytest.mark.parametrize("callback", [NumericsMonitor, ShadowCheck])
def test_each_alone_changes_nothing(callback):
    alone = compiled()
    expected = fit(alone, [], rows=22)
    model = compiled()
    assert fit(model, [callback(2)], rows=22) == expected
    assert_same(state(model), state(alone))


def test_two_replicas():
    result = run_alone(__file__)
    assert result["same"]
    assert result["layers"] == LAYERS
    # Half of a batch of 4, and half of its gradient.
    assert result["size"] == 2 * 16
    assert result["largest"] == pytest.approx(result["expected"], rel=0.01)
    assert result["weighted layers"] == WITH_WEIGHTS
    assert result["cosine"] > 0.98
    assert "net/block_2/ffn" in result["named"]
    assert not {"net/block_3/ffn", "net/head"} & set(result["named"])


def _on_two_replicas():
    strategy = make_strategy("mirrored-2")

    def train(callbacks, faults=(None, None)):
        with strategy.scope():
            model = compiled(faults=faults)
        return model, fit(model, callbacks, rows=18, shuffle=False)

    alone, expected = train([])
    monitor, check = NumericsMonitor(1), ShadowCheck(2)
    model, history = train([monitor, check])
    same = all(
        a.tobytes() == b.tobytes()
        for a, b in zip(state(model), state(alone), strict=True)
    )
    reading = monitor.history[0].layers
    layers = check.history[0].layers
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train([ShadowCheck(1)], faults=(None, Coarse, None))
    found = [str(each.message) for each in caught if "Shadow" in str(each.message)]
    # The mean over two rows of one device is twice the replica's.
    single = NumericsMonitor(1)
    x, y = data(2)
    model = compiled()
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=[single])
    return {
        "same": same and history == expected,
        "layers": list(reading),
        "size": reading["net/first"].output.size,
        "largest": reading["net/head"].gradient.largest,
        "expected": single.history[0].layers["net/head"].gradient.largest / 2,
        "weighted layers": list(layers),
        # Two rows make a small variance, and large gradients before it: some overflow.
        "cosine": np.nanmin([each.error.cosine for each in layers.values()]),
        "named": [message.split()[3] for message in found],
    }


if __name__ == "__main__":
    print(json.dumps(_on_two_replicas()))
