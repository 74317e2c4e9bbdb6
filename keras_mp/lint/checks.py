"""`lint`: all checks of one model."""

import keras

from keras_mp import arguments, guards, policies, private
from keras_mp.lint import alignment, losses, outputs, scaling, sensitive
from keras_mp.lint.finding import Finding


def lint(model: keras.Model, batch_size: int | None = None) -> list[Finding]:
    """Return what is wrong with how ``model`` uses low precision, as a list.

    The checks, by name:

    - ``loss-scaling``: layers compute in float16 and the optimizer scales no loss.
    - ``double-scaling``: a loss-scale optimizer around another.
    - ``sensitive``: a layer on `keras_mp.lists` that computes in 16 bits, in
      no island and without the guard that keras_mp would put on it. Layers that a rule
      of the policy allows are left out.
    - ``island``: a layer of the user's own that computes in float32 because its code
      failed in 16 bits. Always a note.
    - ``head``: the model returns 16 bits to metrics and in ``predict``.
    - ``functional-loss``: a loss computed in 16 bits. Losses given to ``compile``,
      functions too, cast their arguments to their own dtype, which is float32 unless
      asked otherwise. A function of `keras.losses` that the model calls by itself, in
      ``train_step`` or ``compute_loss``, computes in the dtype that the model returns;
      a cast in between is not seen.
    - ``rule``: a rule of a `Policy` that matches no layer.
    - ``alignment``: dimensions of matrix products that are not multiples of the size
      for tensor cores: 8 in float16 and bfloat16, 16 in float8. The cost of padding is
      counted in multiplications of the products with weights. Always a note.
    - ``unknown``: something could not be checked. Always a note.

    Args:
        model: A built Keras model, compiled or not.
        batch_size: The number of rows in a batch, if its alignment is checked as well.

    Returns:
        A list of `Finding`, in the order of the checks; empty if all is well.

    Raises:
        TypeError: ``model`` is not a Keras model, or ``batch_size`` is not an integer.
        ValueError: The model has layers that are not built, or ``batch_size`` is not
            above 0.

    Changes nothing in the model, and does not synchronise with the device.

    Example:

    >>> head = keras.layers.Dense(8, "softmax", dtype="mixed_float16", name="head")
    >>> model = keras.Sequential([keras.Input((8,)), head], name="net")
    >>> for finding in keras_mp.lint(model):
    ...     print(finding.severity, finding.rule, finding.layer)
    note unknown net/head
    warning sensitive net/head
    warning head net/head
    >>> keras_mp.compile(model, "adam", "mse")
    >>> keras_mp.lint(model)
    []
    """
    _check(model, batch_size)
    # A layer that is used in several places is named by the first.
    located = {}
    for layer, path in private.layers.with_paths(model):
        located.setdefault(id(layer), (layer, path))
    located = list(located.values())
    heads = list(outputs.find(model, model.name, guards.are_steps_guarded(model)))
    return [
        *scaling.find(model, located),
        *sensitive.find(located),
        *sensitive.find_islands(located),
        *heads,
        *losses.find(model, any(found.rule == "head" for found in heads)),
        *_rules(model),
        *alignment.find(model, located, batch_size),
    ]


def _check(model, batch_size):
    arguments.check_model(
        "keras_mp.lint(model)", model, "Put a layer into a keras.Sequential."
    )
    if batch_size is not None and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool)
    ):
        raise TypeError(
            "keras_mp.lint(model, batch_size) needs an integer, or None. Got "
            f"{batch_size!r} of type {type(batch_size).__name__}. Pass the rows of one "
            "batch."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"keras_mp.lint(model, batch_size={batch_size}): a batch has at least one "
            "row. Pass the rows of one batch, or leave it out."
        )
    # A model without a call, such as a GAN, is never built; its layers are.
    unbuilt = [
        layer.name for layer in private.layers.walk(model)[1:] if not layer.built
    ]
    if not model.built and (unbuilt or not private.layers.sublayers(model)):
        raise ValueError(
            "keras_mp.lint(model) needs a model that is built, because its shapes "
            f"decide. Got model '{model.name}', which is not built. Give it a "
            "keras.Input, call it on a batch, or call model.build(shape)."
        )


def _rules(model):
    for rule, suggestion in policies.unmatched_rules(model):
        yield Finding(
            "warning",
            "rule",
            model.name,
            f"policy rule '{rule}' matches no layer",
            suggestion.removesuffix("."),
        )
