"""The last layer of a model: in 16 bits only for logits and probabilities.

Near 2,000 float16 has a number for every whole number only, which is too few for
regression. The loss shows what the outputs of a model are: cross entropies and the like
take logits or probabilities, which 16 bits are enough for. Any other head is put in
float32.
"""

import keras

from keras_mp import dtypes, guards, policies, precision_lists, private

_BEFORE = "_keras_mp_before_head"


def keep_in_float32(model: keras.Model) -> None:
    """Put the heads of a compiled model in float32 whose outputs are no logits.

    In a Functional or Sequential model the heads are the last layers with weights
    before each such output, and the layers after them. A model of the user's own
    computes its outputs in float32 instead, if each comes from one layer. A model
    without a loss, and heads that a rule allows, are left alone.

    Args:
        model: A compiled Keras model. If it was compiled for another loss before, its
            former heads get their former policies back.
    """
    for layer in private.layers.walk(model):
        guards.set_exact_heads(layer, False)
        before = vars(layer).pop(_BEFORE, None)
        if before is not None:
            policies.put_under(layer, before)
    losses = getattr(model, "loss", None)
    if losses is None:
        return
    outputs = list(_outputs(model))
    guards.set_exact_heads(model, not outputs and not _takes_logits(losses))
    for path, layer, name, index in outputs:
        loss = _loss_of(losses, name, index)
        if loss is not None and not _takes_logits(loss):
            _keep(layer, path)


def reason(layer: keras.layers.Layer) -> str | None:
    """Return why ``layer``, a head, is in float32; None if it is none."""
    if _BEFORE in vars(layer):
        return "the head: its outputs are no logits"
    return None


def _keep(layer, path):
    low = dtypes.computes_low(layer)
    if not low or policies.list_of(layer, path) == "allow":
        return
    inner = private.layers.walk(layer)[1:]
    if inner and private.layers.has_own_call(layer):
        guards.set_exact_heads(layer, True)
        return
    dtype = layer.compute_dtype
    for each in (layer, *inner):
        before = policies.policy_of(each)
        # Wanted: the head of a saved model has a float32 policy, as by a rule.
        around = dtype if each is layer else None
        policies.keep_in_float32(each, around, wanted=True)
        vars(each)[_BEFORE] = before


def _outputs(model):
    """Yield path and layer of the head of each output, and its name and index."""
    if not private.graphs.has_graph(model) or not model.built:
        return
    if private.graphs.graph_of(model) is None:
        return
    for index, (name, tensor) in enumerate(private.graphs.named_outputs(model)):
        for layer, path in _last_layers(tensor, model.name):
            yield path, layer, name, index


def _last_layers(tensor, path):
    """Yield the layers, with paths, that compute ``tensor`` from the last products."""
    operation, index = private.graphs.source_of(tensor)
    if isinstance(operation, keras.layers.InputLayer):
        return
    is_layer = isinstance(operation, keras.layers.Layer)
    inner_path = f"{path}/{operation.name}"
    if is_layer and private.graphs.has_graph(operation):
        inner = private.graphs.graph_of(operation)
        yield from _last_layers(inner.outputs[index], inner_path)
        return
    if is_layer:
        yield operation, inner_path
        if operation.weights:
            return
    for source in private.graphs.inputs_of(tensor):
        yield from _last_layers(source, path)


def _loss_of(losses, name, index):
    if isinstance(losses, dict):
        return losses.get(name)
    if isinstance(losses, list | tuple):
        return losses[index] if index < len(losses) else None
    return losses


def _takes_logits(loss):
    """Return whether all of ``loss``, nested in any way, takes logits."""
    each = [one for one in keras.tree.flatten(loss) if one is not None]
    return bool(each) and all(map(_is_of_logits, each))


def _is_of_logits(loss):
    if isinstance(loss, str | dict):
        loss = keras.losses.get(loss)
    function = getattr(loss, "fn", loss)
    known = any(function is each for each in precision_lists.LOGIT_FUNCTIONS)
    return known or isinstance(loss, precision_lists.LOGIT_LOSSES)
