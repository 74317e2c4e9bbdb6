"""Python's and NumPy's generators go on from a state that went through JSON."""

import json
import random

import numpy as np

from keras_mp.resuming import randomness


def draw():
    return random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist()


def test_states_go_through_json():
    random.seed(1)
    np.random.seed(1)
    draw()  # half of a pair of normal numbers is kept for the next call
    text = json.dumps(randomness.state())
    first = draw()
    draw()
    randomness.set_state(json.loads(text))
    assert draw() == first
