"""A client: a small random model of a package, its data, and how it is compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Client:
    """One model of a package that was written for Keras 3.

    Attributes:
        name: What the table calls it; unique.
        kind: What sort of model it is.
        build: Returns the model, built, with random weights.
        data: Returns the arguments of ``fit``: x, and y and weights where it takes
            them, in a tuple; or others, by name.
        compile: Returns the arguments of ``compile`` but for the optimizer.
        predict: Takes the model and returns what it predicts. None for ``predict(x)``.
        generate: Takes the trained model, and raises an AssertionError if what it
            generates does not fit what it predicts. None where it generates nothing.
        tune: Takes a function that returns the compiled model, and returns the one to
            train, as a tuner finds it. None where that is the compiled model.
        rules: Which layers a `keras_mp.Policy` keeps in float32.
        draws: Whether a step draws random numbers. They differ between dtypes, so the
            step is only held to be finite and to change the weights.
        merges: Whether saving adds weights to others, as Keras does with LoRA's, so
            that predictions of the loaded model are rounded otherwise.
        faults: Which checks fail under keras_mp too, by name, and why, where that is
            not for keras_mp to mend.
    """

    name: str
    kind: str
    build: Callable[[], keras.Model]
    data: Callable[[], tuple | dict]
    compile: Callable[[], dict[str, Any]] = dict
    predict: Callable[[keras.Model], Any] | None = None
    generate: Callable[[keras.Model], None] | None = None
    tune: Callable[[Callable[[], keras.Model]], keras.Model] | None = None
    rules: tuple = ()
    draws: bool = False
    merges: bool = False
    faults: dict = dataclasses.field(default_factory=dict, compare=False)

    def fit_arguments(self):
        """Return all arguments of a ``fit`` that takes one step."""
        data = self.data()
        if isinstance(data, dict):
            return {**data, "verbose": 0}
        named = dict(zip(("x", "y", "sample_weight"), data, strict=False))
        rows = len(keras.tree.flatten(data)[0])
        return {**named, "batch_size": rows, "shuffle": False, "verbose": 0}

    def predictions(self, model):
        """Return what ``model`` predicts, as a list of arrays."""
        if self.predict is not None:
            return keras.tree.flatten(self.predict(model))
        return keras.tree.flatten(model.predict(self.data()[0], verbose=0))


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to train a client: whose policy it is, which, and how it is set.

    Attributes:
        owner: ``"keras"`` or ``"ours"``.
        policy: The name of a dtype policy.
        how: ``"set_policy"``: the model is built under it; ``"convert"``: the model is
            built in float32 and put under it by ``keras_mp.compile``.
    """

    owner: str
    policy: str
    how: str = "set_policy"

    @property
    def title(self):
        if self.policy == "float32":
            return "float32"
        short = self.policy.removeprefix("mixed_")
        return f"{short}, {'Keras' if self.owner == 'keras' else self.how}"


FLOAT32 = Way("keras", "float32")
POLICIES = "mixed_float16", "mixed_bfloat16"
PLAIN = [Way("keras", policy) for policy in POLICIES]
OURS = [
    Way("ours", policy, how) for policy in POLICIES for how in ("set_policy", "convert")
]
WAYS = [FLOAT32, *PLAIN, *OURS]
