"""What a scenario sees of its cell: build a model, train it in the cell's way, compare.

The same scenario runs for three owners: ours, Keras's own class, and the bare inner
optimizer on one device, whose results are the truth that the other two are held to.
"""

import functools
import hashlib

import keras
import numpy as np
import tensorflow as tf

from .cells import LOOPS

SCALE = 8.0  # small enough that float32 gradients times it lose nothing

# Sums over replicas are taken in another order: a few roundings of float32 in weights
# of about 1.
ROUNDING = 1e-5


class Trial:
    """One cell at work.

    Args:
        owner: ``"ours"``, ``"keras"`` or ``"bare"``.
        strategy: The process's strategy.
        way: A key of `cells.WAYS`.
        truth: The weights that the bare optimizer reached on one device, by name; the
            bare owner fills it.
        folder: A directory for files of this process.
    """

    def __init__(self, owner, strategy, way, truth, folder):
        self.owner = owner
        self.strategy = strategy
        self.way = way
        self.truth = truth
        self.folder = folder
        self.digest = None
        self._jit = {}
        self._steps = {}

    @property
    def bare(self):
        return self.owner == "bare"

    @property
    def loop(self):
        return self.way in LOOPS

    @property
    def fits(self):
        return self.way.startswith("fit")

    def model(self, build, inner, jit=False, **options):
        """Return a compiled model, made and compiled under the strategy.

        Args:
            build: Returns a new model.
            inner: Returns a new inner optimizer.
            jit: Whether to compile the steps with XLA.
            **options: Of the loss-scaling optimizer.
        """
        with self.strategy.scope():
            keras.utils.set_random_seed(0)
            model = build()
            self._compile(model, self._wrapped(inner(), options), jit)
            if self.loop:
                model.optimizer.build(model.trainable_variables)
        self._jit[model] = jit
        return model

    def train(self, model, batches, **options):
        """Take one step with each of ``batches``, which are global batches.

        Args:
            model: A compiled model.
            batches: List of tuples of arrays, as for `fit`; all but the last have the
                same size.
            **options: Of ``apply_gradients``, which only loops call themselves.
        """
        if self.loop:
            return self._loop(model, batches, options)
        if self.way == "batch":
            for x, y in batches:
                model.train_on_batch(x, y)
            return None
        data = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        x, y, weights = data if len(data) == 3 else (*data, None)
        model.run_eagerly = self.way == "fit-eager"
        return model.fit(
            x,
            y,
            batch_size=len(batches[0][0]),
            sample_weight=weights,
            shuffle=False,
            verbose=0,
        )

    def finish(self, model):
        """End the training as Keras's documentation asks of those who do not `fit`."""
        if not self.fits:
            model.optimizer.finalize_variable_values(model.trainable_variables)

    def load(self, path):
        """Load a model to go on training it, in the owner's way."""
        if self.owner == "ours":
            import keras_mp

            model = keras_mp.load_model(path)
        else:
            model = keras.saving.load_model(path)
        self._jit[model] = False
        return model

    # Comparisons; each raises an AssertionError that says what differs.

    def check(self, model, name="weights", atol=ROUNDING):
        """Check that ``model`` got where the bare optimizer got on one device."""
        weights = self.agreed(model)
        if self.bare:
            self.truth[name] = [weight.tolist() for weight in weights]
            return 0.0
        truth = [np.asarray(weight, "float32") for weight in self.truth[name]]
        difference = _largest_difference(weights, truth)
        assert difference <= atol, (
            f"weights differ from one device's by {difference:.1e}"
        )
        return difference

    def agreed(self, model):
        """Return the weights, which must be the same on all replicas, to the bit.

        Other processes' weights are compared by their digest.
        """
        parts = [self.parts(variable) for variable in model.trainable_variables]
        for variable, values in zip(model.trainable_variables, parts, strict=True):
            assert np.isfinite(values).all(), f"{variable.path} is not finite"
            same = all(np.array_equal(value, values[0]) for value in values)
            assert same, f"{variable.path} differs between the replicas"
        weights = [values[0] for values in parts]
        data = b"".join(weight.tobytes() for weight in weights)
        self.digest = hashlib.sha256(data).hexdigest()
        return weights

    def check_scale(self, model, expected):
        """Check that every replica holds the ``expected`` scale."""
        scales = [float(part) for part in self.parts(model.optimizer.dynamic_scale)]
        assert set(scales) == {expected}, f"scales are {scales}, not {expected}"

    def parts(self, variable):
        """Return the values that this process's replicas hold of ``variable``."""
        parts = self.strategy.experimental_local_results(variable.value)
        return [part.numpy() for part in parts]

    # The owner's part.

    def _wrapped(self, inner, options):
        if self.bare:
            return inner
        if self.owner == "keras":
            cls = keras.optimizers.LossScaleOptimizer
        else:
            from keras_mp import LossScaleOptimizer as cls
        return cls(inner, initial_scale=SCALE, **options)

    def _compile(self, model, optimizer, jit):
        arguments = {
            "loss": "mse",
            "jit_compile": jit,
            "run_eagerly": self.way == "fit-eager",
            "steps_per_execution": 2 if self.way == "fit-steps" else 1,
        }
        if self.owner == "ours":
            import keras_mp

            keras_mp.compile(model, optimizer, **arguments)
        else:
            model.compile(optimizer, auto_scale_loss=False, **arguments)

    # A loop of one's own, as the strategies' guides have it.

    def _loop(self, model, batches, options):
        strategy = model.distribute_strategy
        if model not in self._steps:
            step = functools.partial(_step, model, options)
            self._steps[model] = self._traced(model, strategy, step)
        for x, y in batches:
            self._steps[model](_distributed(strategy, x), _distributed(strategy, y))

    def _traced(self, model, strategy, step):
        def global_step(x, y):
            strategy.run(step, args=(x, y))

        if self.way == "loop-eager":
            return global_step
        # Autograph would hide where an exception comes from.
        return tf.function(
            global_step, autograph=False, jit_compile=self._jit[model] or None
        )


def _step(model, options, x, y):
    """Take one step in a replica: ``x`` is its part of the global batch."""
    context = tf.distribute.get_replica_context()
    rows = context.all_reduce("SUM", tf.shape(x)[0])
    with tf.GradientTape() as tape:
        errors = tf.square(model(x, training=True) - y)
        loss = tf.reduce_sum(errors) / tf.cast(rows, "float32")
        loss = model.optimizer.scale_loss(loss)
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    if options.get("aggregate_gradients") is False:
        gradients = context.all_reduce("SUM", gradients)
    model.optimizer.apply_gradients(zip(gradients, variables, strict=True), **options)


def _distributed(strategy, rows):
    """Return ``rows`` as one tensor a replica, the last replica's rows last."""
    parts = np.array_split(rows, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def _largest_difference(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)
