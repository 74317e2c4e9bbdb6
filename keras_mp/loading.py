"""`load_model`: a saved model with the policies and the protection that it had."""

import contextlib
import os
from typing import Any

import keras

from keras_mp import (
    distribute,
    guarded,
    guards,
    heads,
    policies,
    private,
    resuming,
    saved_files,
    training,
    under_policy,
)
from keras_mp.optimizer import LossScaleOptimizer
from keras_mp.protection import protect
from keras_mp.speed import execution

_POLICIES = {"DTypePolicy", "FloatDTypePolicy", "Policy"}


def load_model(
    path: str | os.PathLike[str],
    *,
    policy: keras.DTypePolicy | str | None = None,
    **kwargs: Any,
) -> keras.Model:
    """Load a ``.keras`` file as `keras.saving.load_model` does, ready to train on.

    Keras alone restores policies with their rules, float32 islands, the scaling rule,
    the scale and the counters. This function adds:

    - guards, and protection of the model's state in skipped steps, as
      `keras_mp.compile` gives them;
    - rules on paths in models of your own class, whose layers are built before they
      are put together;
    - the saved policy, whatever the global policy is, for layers that a class of your
      own creates without a ``dtype``. They are not in the file, and Keras creates them
      under the global policy. A layer that such a class creates with a ``dtype`` gets
      that one, even if `keras_mp.convert` had given it another;
    - our `LossScaleOptimizer` in place of a `keras.optimizers.LossScaleOptimizer`, with
      its scale, its counters and the inner optimizer's variables.

    A bare optimizer, as of ``guard=False``, stays bare; compile the model again with
    ``model.optimizer`` to guard it. The global policy stays what it is. Does not read
    values back from the device.

    Args:
        path: Path of the ``.keras`` file.
        policy: None for the saved policy; or a dtype policy, its name or ``"auto"``:
            the model is put under it, all layers as by `keras_mp.convert`. Weights,
            moments and ``iterations`` stay what they were, and so do counters. A
            `LossScaleOptimizer` is added or taken away as `keras_mp.compile` would;
            from one policy in float16 to another the rule and the scale stay.
        **kwargs: Keyword arguments of `keras.saving.load_model`, such as
            ``custom_objects`` and ``compile``.

    Returns:
        The model, compiled if it was saved so.

    Raises:
        ValueError: There is no such file, or no such ``policy``; the file is damaged or
            of another kind; it was saved by a newer Keras and this one cannot load it;
            a rule of a saved `Policy` is a class that is not registered; or the saved
            variables would have to be rounded for ``policy``.
        TypeError: ``path`` is no path, or the model needs another class that is not
            registered.

    Example:

    >>> model = keras_mp.load_model("model.keras")
    >>> model = keras_mp.load_model("model.keras", policy="mixed_bfloat16")
    """
    target = None if policy is None else policies.get(policy)
    unknown = None if target is None else policies.FLOAT32
    objects = kwargs.get("custom_objects")
    with (
        _whole(path),
        _saved_policy(path, objects, unknown),
        policies.own_code_guarded(),
        resuming.restored_from(path) as restore,
    ):
        model = keras.saving.load_model(path, **kwargs)
    if type(getattr(model, "optimizer", None)) is keras.optimizers.LossScaleOptimizer:
        guarded.replace_keras_scaler(model)
    if target is not None:
        under_policy.put_under(model, target)
    training.make_safe(model)
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, LossScaleOptimizer):
        protect(model, optimizer)
    if optimizer is not None:
        distribute.prepare_steps(model, optimizer)
        execution.speed_up(model)
        heads.keep_in_float32(model)
        guards.fall_back(model)
        private.trainer.keep_bare_when_loaded(model)
    resuming.attach(model)
    restore(model)
    return model


def holds_ours(path: str | os.PathLike[str]) -> bool:
    """Return whether a saved model has a policy, layer or optimizer of keras_mp's.

    If not, it may still have been made with keras_mp: `keras_mp.set_policy` and
    `keras_mp.convert` with the name of a policy leave nothing of their own in a file,
    except for the optimizer, unless the model was in float32 or had ``guard=False``.

    Args:
        path: A ``.keras`` file, or a folder with what such a file holds.
    """
    return any(
        "keras_mp" == _package(each) for each in _objects(saved_files.config_of(path))
    )


def _package(saved):
    return str(saved.get("registered_name")).split(">")[0]


def _objects(config):
    """Yield each saved object in ``config``, as Keras writes them, the outer first."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            yield from _objects(each)


@contextlib.contextmanager
def _whole(path):
    """Refuse a damaged file; say of what a newer Keras has saved why it fails to load.

    Other errors stay what they are, because code of the user's own may raise them.
    """
    path = saved_files.checked_path("keras_mp.load_model", "path", path)
    called = f"keras_mp.load_model({path!r})"
    fault = saved_files.fault_of_model(path)
    if fault:
        raise ValueError(
            f"{called} needs the file of a saved model. Got a file that {fault}. Take "
            "another copy of it, or save the model again by model.save('model.keras')."
        )
    try:
        yield
    except Exception as error:
        newer = saved_files.newer_keras_of(path, keras.__version__)
        if newer is None:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{called}: the file was saved by Keras {newer}, and this is Keras "
            f"{keras.__version__}, which could not load it: {error} Update Keras, or "
            "save the model again with this version."
        ) from error


@contextlib.contextmanager
def _saved_policy(path, custom_objects, unknown):
    """Create layers in the block under the policy of the saved model.

    If the file does not tell it, under ``unknown``, or the global policy if that is
    None.
    """
    policy, saved = unknown, _policy_config(saved_files.config_of(path))
    if saved is not None:
        with keras.saving.custom_object_scope(custom_objects or {}):
            policy = keras.dtype_policies.deserialize(saved)
    with policies.policy_scope(policy or keras.config.dtype_policy()):
        yield


def _policy_config(config):
    """Return the policy that a model was made under, as it was saved, or None.

    That is the model's own policy, if it was saved. A Functional model does not save
    it. Then it is a policy with rules, if any layer has one; else the most frequent
    policy among layers that may contain layers which are not in the file; else any
    policy but float32, which unsafe layers have under every policy; else float32.
    """
    found = [(each, _own_policy(each)) for each in _objects(config)]
    found = [(each, policy) for each, policy in found if policy is not None]
    if not found or found[0][0] is config:
        return found[0][1] if found else None
    found.sort(key=lambda pair: _is_float32(pair[1]))
    every = [policy for _, policy in found]
    rules = [policy for policy in every if _package(policy) == "keras_mp"]
    holding = [policy for each, policy in found if _holds_layers(each)]
    if rules or not holding:
        return (rules or every)[0]
    return max(holding, key=holding.count)


def _own_policy(saved):
    """Return the policy of a saved layer, as it was saved; None if it tells nothing.

    The policy of a quantized layer tells nothing, because the layer was made under
    another; nor does Keras's map of policies, which may leave out its default.
    """
    inner = saved.get("config")
    policy = inner.get("dtype") if isinstance(inner, dict) else None
    if not isinstance(policy, dict) or policy["class_name"] not in _POLICIES:
        return None
    # Which layers are quantized, and ids of objects, differ between equal policies.
    config = {k: v for k, v in policy["config"].items() if k != "quantized"}
    return {k: v for k, v in policy.items() if k != "shared_object_id"} | {
        "config": config
    }


def _is_float32(policy):
    return policy["config"].get("name") == "float32"


def _holds_layers(saved):
    own = str(saved.get("module")).split(".")[0] != "keras"
    return own or saved["class_name"] == "Sequential"
