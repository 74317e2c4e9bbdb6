"""`Policy`: a dtype policy with layers that stay in float32, and how to set one."""

import contextlib
import copy
import functools
import inspect
import re
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping

import keras

from keras_mp import dtypes, guards, hardware, lists, private

_KERAS_MODULES = {"keras.layers": keras.layers, "keras": keras}

FLOAT32 = keras.DTypePolicy("float32")

_RULES = "_keras_mp_rules"
_FOLLOWS = "_keras_mp_follows"
_ATTACHED = "_keras_mp_attached"


@keras.saving.register_keras_serializable("keras_mp")
class Policy(keras.dtype_policies.DTypePolicyMap):
    """A dtype policy with rules for the layers that compute in float32.

    Usable wherever Keras takes a dtype policy: `keras_mp.set_policy`, a layer's
    ``dtype``, `keras_mp.compile`. A layer that a rule matches gets a plain float32
    policy; every other one keeps the policy together with its rules, so that layers it
    creates later obey them, and so that they are saved in the ``.keras`` file.

    Args:
        name: A Keras policy name such as ``"mixed_float16"``, ``"mixed_bfloat16"`` or
            ``"float32"``; or ``"auto"`` to pick by hardware (`keras_mp.hardware`).
            Defaults to ``"auto"``.
        float32: Rules, each a layer class or a regular expression that must match in
            full a layer's name or a run of names in its path, such as ``"head"``,
            ``"block_.*"`` or ``"encoder/attention"``. A rule that matches a container
            covers everything inside. Rules on a path take effect as layers are put
            together and built, at the latest in `keras_mp.compile`.
        allow: Rules for layers that are to be left as Keras has them, in low
            precision, though they are on keras_mp's list of those that are not safe in
            it; ``".*"`` for all.
        follow: Rules for layers without weights that are to compute in the dtype that
            comes in.
        strict: Whether a layer of your own that fails because dtypes do not match, as
            where it multiplies its 16-bit input with a float32 constant, is to raise.
            Otherwise its code computes in float32 from then on, with a warning.

    Rules come before the lists of `keras_mp.lists`, by which every layer under a policy
    of keras_mp's is made safe: those on ``DENY`` compute in float32, those on
    ``FOLLOW`` in the dtype that comes in, and of the others what needs it, such as the
    softmax of attention, computes in float32 inside.

    Layers that Keras names by itself (``softmax``, ``softmax_1``, ...) may be called
    otherwise after loading: give them a class rule, or name them.

    Attributes:
        rules: The rules of ``float32``, as a tuple of strings and classes.
        allow, follow: Those of the other lists.
        strict: As given.
        reason: Why ``"auto"`` chose as it did; None if the policy was named.

    Raises:
        ValueError: An unknown policy, or a string that is no regular expression.
        TypeError: A rule that is neither a string nor a layer class.

    Example:

    >>> policy = Policy("mixed_bfloat16", float32=["head", keras.layers.Softmax])
    >>> keras.layers.Dense(10, name="head", dtype=policy).compute_dtype
    'float32'
    >>> keras.layers.Dense(10, name="body", dtype=policy).compute_dtype
    'bfloat16'
    """

    # A subclass of DTypePolicyMap, because Keras replaces every other kind of policy
    # by its name when a model is loaded.

    def __init__(
        self,
        name: str = "auto",
        float32: Iterable[str | type] | str | type = (),
        *,
        allow: Iterable[str | type] | str | type = (),
        follow: Iterable[str | type] | str | type = (),
        strict: bool = False,
    ) -> None:
        _watch_layers()
        self.reason = None
        if name == "auto":
            name, self.reason = hardware.recommend()
        super().__init__(default_policy=_named_policy(name))
        self.rules = _checked_rules("float32", float32)
        self.allow = _checked_rules("allow", allow)
        self.follow = _checked_rules("follow", follow)
        self.strict = bool(strict)
        self._layer = None
        self._quantized = {}

    @property
    def name(self) -> str:
        """Name of the policy for the layers that no rule matches."""
        return self.default_policy.name

    def matches(self, layer: keras.layers.Layer, path: str) -> bool:
        """Return whether a rule keeps ``layer``, found under ``path``, in float32."""
        return lists.matches_any(self.rules, layer, path)

    @property
    def all_rules(self):
        """The rules of all three lists, as one tuple."""
        return self.rules + self.allow + self.follow

    def for_layer(self, layer, path):
        """Return the policy that ``layer``, found under ``path``, is to have.

        Without rules that is Keras's own policy, so that a saved model loads where
        keras_mp is not installed. A saved policy tells which layers inside the one that
        has it were quantized.
        """
        for inner, quantized in self._quantized.items():
            if f"/{path}".endswith(f"/{inner}"):
                return quantized
        if self.matches(layer, path):
            return FLOAT32
        if not self.all_rules and not self.strict:
            return self.default_policy
        own = copy.copy(self)
        own._layer = weakref.ref(layer)
        return own

    def get_config(self):
        others = {"allow": self.allow, "follow": self.follow}
        rules = {"float32": self.rules, **{k: v for k, v in others.items() if v}}
        quantized = _quantized_inside(self._layer and self._layer())
        return {
            "name": self.name,
            **{name: list(map(_rule_config, value)) for name, value in rules.items()},
            **({"strict": True} if self.strict else {}),
            **({"quantized": quantized} if quantized else {}),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        rules = {
            name: [_rule_from(rule, custom_objects) for rule in value]
            for name, value in config.items()
            if name not in ("name", "quantized", "strict")
        }
        policy = cls(config["name"], strict=config.get("strict", False), **rules)
        policy._quantized = {
            path: keras.dtype_policies.deserialize(quantized)
            for path, quantized in config.get("quantized", {}).items()
        }
        return policy

    def _key(self):
        return self.name, self.rules, self.allow, self.follow, self.strict

    def __eq__(self, other):
        return isinstance(other, Policy) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        rules_of = {"float32": self.rules, "allow": self.allow, "follow": self.follow}
        shown = [
            f", {name}={[getattr(rule, '__name__', rule) for rule in rules]}"
            for name, rules in rules_of.items()
            if rules or name == "float32"
        ]
        strict = ", strict=True" if self.strict else ""
        return f"<Policy '{self.name}'{''.join(shown)}{strict}>"

    def __getstate__(self):
        return {**self.__dict__, "_layer": None}

    # The mapping that Keras's base class is: empty, except that Keras writes
    # `layer.dtype_policy = policy` as an item. One object serves one layer, so the
    # item is that layer's new policy.

    def __getitem__(self, path):
        return self.default_policy

    def __setitem__(self, path, policy):
        private.layers.set_layer_policy(self._layer(), policy)

    def __contains__(self, path):
        return False

    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())

    def __bool__(self):
        return True


def get(policy: keras.DTypePolicy | str) -> keras.DTypePolicy:
    """Return ``policy`` as a Keras dtype policy.

    Args:
        policy: A dtype policy, its name, or ``"auto"``.

    Raises:
        ValueError: It is none of these.
    """
    return policy if isinstance(policy, keras.DTypePolicy) else Policy(policy)


def set_policy(policy: keras.DTypePolicy | str) -> keras.DTypePolicy:
    """Set the policy of all layers created from now on.

    Args:
        policy: A `Policy`, any other Keras dtype policy, or a name; ``"auto"`` picks
            by hardware.

    Returns:
        The policy that was set; its ``reason`` says why ``"auto"`` picked it.

    Example:

    >>> set_policy("mixed_bfloat16").compute_dtype
    'bfloat16'
    """
    policy = get(policy)
    keras.config.set_dtype_policy(policy)
    return policy


@contextlib.contextmanager
def policy_scope(policy: keras.DTypePolicy | str) -> Iterator[keras.DTypePolicy]:
    """Set the policy inside a ``with`` block and restore what was there afterwards.

    The earlier policy comes back after an exception too. The block's target is the
    policy that was set.

    Example:

    >>> with policy_scope("mixed_float16"):
    ...     layer = keras.layers.Dense(8)
    >>> layer.compute_dtype
    'float16'
    """
    before = keras.config.dtype_policy()
    policy = set_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)


def layers_with_paths(layer, path=None):
    """Yield each layer inside ``layer``, itself first, with its path.

    The path joins the names of the containers down to the layer, as the model is put
    together; unlike Keras's ``layer.path`` it is the same before and after the model
    is built, saved and loaded. A layer used in two places comes twice.
    """
    path = path or layer.name
    yield layer, path
    for inner in private.layers.sublayers(layer):
        yield from layers_with_paths(inner, f"{path}/{inner.name}")


def policy_of(layer):
    """Return the policy of ``layer``; of a float32 island, the one around it."""
    return getattr(layer, "outer_policy", layer.dtype_policy)


def put_under(layer, policy):
    """Put one layer under ``policy``; a float32 island stays one.

    A layer whose compute dtype is no float (lookups, hashing), a quantized layer and
    a model's input keep their policy.
    """
    if hasattr(layer, "outer_policy"):
        layer.outer_policy = policy
    elif is_convertible(layer):
        guards.keep(layer, None)
        private.layers.set_layer_policy(layer, policy)
        if isinstance(layer, keras.Model):
            private.trainer.forget_dtypes(layer)
        if isinstance(layer, keras.layers.Normalization):
            # It keeps what it adapted to in the compute dtype of the time.
            layer.finalize_state()


def keep_in_float32(layer, dtype, wanted=False):
    """Put one layer under float32 that hands on ``dtype`` where its reader needs that.

    Args:
        layer: The layer.
        dtype: The compute dtype that it would have; nothing is remembered of a wide
            one, nor of layers inside a container that is kept in float32 itself.
        wanted: Whether a rule of the user's asks for it.
    """
    low = dtype in dtypes.LOW_PRECISION
    put_under(layer, FLOAT32)
    if hasattr(layer, "outer_policy") or layer.compute_dtype != "float32":
        return
    guards.keep(layer, dtype if low else None, wanted)
    if low:
        guards.guard_flow(layer)


def is_convertible(layer):
    """Return whether the policy of ``layer`` may be replaced by another."""
    return (
        keras.backend.is_float_dtype(layer.compute_dtype)
        and layer.quantization_mode is None
        and not isinstance(layer, keras.layers.InputLayer)
    )


def is_low_anywhere(model):
    """Return whether ``model`` or any layer in it computes in float16 or bfloat16."""
    return any(dtypes.computes_low(layer) for layer in private.layers.walk(model))


def resolve_rules(layer, path=None):
    """Make every layer in ``layer`` safe that computes in low precision.

    Rules that a policy holds come first, then the lists of `keras_mp.lists`. A layer
    under a policy of keras_mp's obeys rules on its name and class from the start, and
    rules on its path and attributes as it is built or put into another; this settles
    what only a finished model shows, and layers that have Keras's own policies.
    """
    path = path or layer.name
    _resolve(layer, path, (), None, False)
    _settle_all(layer, path, None)


def _resolve(layer, path, around, outer, inside_kept):
    """Apply rules to ``layer`` at ``path``, inside the (layer, path) of ``around``.

    A layer that was loaded in float32 no longer has the policy whose rule kept it so:
    that is ``outer``, the policy around it.
    """
    policy = policy_of(layer)
    if not isinstance(policy, Policy) and layer.compute_dtype == "float32":
        policy = outer
    places = [*around, (layer, path)]
    kept = isinstance(policy, Policy) and any(
        policy.matches(*place) for place in places
    )
    if kept:
        dtype = None if inside_kept else policy.compute_dtype
        keep_in_float32(layer, dtype, wanted=True)
    for inner in private.layers.sublayers(layer):
        place = f"{path}/{inner.name}"
        _resolve(inner, place, places, policy, inside_kept or kept)


def _settle_all(layer, path, around):
    """Settle ``layer`` and what is inside it; ``around`` is the policy around it."""
    policy = _rules_of(layer) or around
    obey(layer, policy)
    _settle(layer, path)
    if not guards.is_whole(layer):
        for inner in private.layers.sublayers(layer):
            _settle_all(inner, f"{path}/{inner.name}", policy)


def _settle(layer, path):
    """Make one layer safe by the lists, if it computes in low precision."""
    settled = _is_settled(layer)
    place = place_in_lists(layer, path) if settled else None
    if place == "follow":
        layer.autocast = layer.autocast and _off(layer)
        guards.guard_follower(layer)
    elif vars(layer).pop(_FOLLOWS, False):
        layer.autocast = True
    if place == "float32":
        keep_in_float32(layer, layer.compute_dtype)
    elif settled and place is None:
        guards.guard(layer, strict=(_rules_of(layer) or _no_rules()).strict)
    elif guards.dtype_around(layer) or _holds_low(layer):
        guards.guard_flow(layer)


def _holds_low(layer):
    return bool(private.layers.sublayers(layer)) and is_low_anywhere(layer)


def _off(layer):
    """Return the ``autocast`` of a layer that follows, and remember that it does."""
    vars(layer)[_FOLLOWS] = True
    return False


def _is_settled(layer):
    """Return whether the lists have a say in how ``layer`` computes."""
    return dtypes.computes_low(layer) and is_convertible(layer)


def place_in_lists(layer, path):
    """Return the list that has ``layer``: "float32", "follow", "allow" or None.

    "allow" is for the policy's own rule only; the list of that name is of layers that
    compute in low precision as all do that are on no list.
    """
    rules = _rules_of(layer) or _no_rules()
    if lists.matches_any(rules.allow, layer, path):
        return "allow"
    if lists.matches_any(rules.follow, layer, path):
        return "follow"
    if private.layers.is_subclass_of_the_users(layer):
        return None  # its own code takes what Keras gives it
    if lists.matches_any(lists.DENY, layer, path):
        return "float32"
    return "follow" if type(layer) in lists.FOLLOW else None


def has_rule(layer, path, around):
    """Return whether a rule keeps ``layer`` or a layer of ``around`` in float32.

    Args:
        layer: The layer.
        path: Where it was found.
        around: The layers around it, each as (layer, path).
    """
    rules = _rules_of(layer) or _no_rules()
    return any(rules.matches(*place) for place in (*around, (layer, path)))


def _rules_of(layer):
    """Return the policy of keras_mp's under which ``layer`` is, or None."""
    return vars(layer).get(_RULES)


def obey(layer, policy):
    """Remember that ``layer`` is under ``policy``, of keras_mp's or not.

    The layer itself has Keras's own policy where no rule has to be saved with it.
    """
    vars(layer)[_RULES] = policy if isinstance(policy, Policy) else _no_rules()


def _choose(layer, policy, path, attribute):
    """Return what ``layer`` gets that is given ``policy`` as ``attribute``."""
    if not isinstance(policy, Policy):
        low = dtypes.computes_low(policy)
        if _loading and low and private.layers.has_own_call(layer):
            guards.guard_own(layer, strict=False)
        return policy
    obey(layer, policy)
    chosen = policy.for_layer(layer, path)
    if attribute == "outer_policy":
        return chosen
    low = dtypes.computes_low(chosen)
    if low and place_in_lists(layer, path) == "float32":
        chosen = FLOAT32
    if chosen is FLOAT32 and dtypes.computes_low(policy):
        wanted = policy.matches(layer, path)
        guards.keep(layer, policy.compute_dtype, wanted)
    if dtypes.computes_low(policy) and private.layers.has_own_call(layer):
        # Its code may run, to build it, before it is built.
        guards.guard_own(layer, policy.strict)
    return chosen


@contextlib.contextmanager
def own_code_guarded() -> Iterator[None]:
    """Guard code of the user's own under any policy in 16 bits, as a file is loaded.

    A policy without rules is saved as one of Keras's, and the graph of a model is made
    anew, which runs all code in it, before anything is known of the model.
    """
    _watch_layers()
    _loading.append(True)
    try:
        yield
    finally:
        _loading.pop()


_loading = []


def _attached(layer, sublayer):
    policy = _rules_of(layer)
    rules = [each for each in (policy, _rules_of(sublayer)) if each is not None]
    at_stake = any(each.all_rules for each in rules)
    place = private.layers.place_of(layer)
    path = f"{place}/{sublayer.name}"
    if at_stake:
        _resolve(sublayer, path, [(layer, place)], policy_of(layer), _is_kept(layer))
    if policy is None or guards.is_whole(layer):
        return
    if at_stake or _rules_of(sublayer) is None:
        _settle_all(sublayer, path, policy)
    if _is_settled(layer) and place_in_lists(layer, place) is None:
        # Inputs are cast before a layer is built.
        guards.keep_inputs(layer, sublayer)


def _is_kept(layer):
    return guards.dtype_around(layer) is not None


def _assigned(layer, name, value):
    """Return what ``layer`` gets as attribute ``name`` that is given ``value``.

    Its inputs are cast before it is built. So what decides about that is looked at as
    it arrives, and the guards, which need the whole layer, are put on when it is built.
    """
    if name not in _DECISIVE or _rules_of(layer) is None:
        return value
    newly_built = name == "built" and value and not vars(layer).get("built")
    if vars(layer)["_dtype_policy"].compute_dtype not in dtypes.LOW_PRECISION:
        if newly_built and guards.dtype_around(layer) is not None:
            guards.guard_flow(layer)
        raw = name == "autocast" and guards.takes_raw_data(layer)
        return False if raw else value
    place = private.layers.place_of(layer)
    if name == "autocast" and value and place_in_lists(layer, place) == "follow":
        return _off(layer)
    if _is_denied_with(layer, place, name, value):
        keep_in_float32(layer, layer.compute_dtype)
    if newly_built:
        _settle(layer, place)
    if isinstance(layer, keras.Sequential):
        _assigned_to_sequential(layer, name, value)
    return value


def _assigned_to_sequential(layer, name, value):
    if name == private.graphs.SEQUENTIAL_LAYERS:
        private.graphs.widen_made_input(value)
    elif name == "built":
        # That is assigned whenever a layer is added, which nothing else tells.
        seen = vars(layer).setdefault(_ATTACHED, weakref.WeakSet())
        for inner in private.layers.sublayers(layer):
            if inner not in seen:
                seen.add(inner)
                _attached(layer, inner)


def _is_denied_with(layer, place, name, value):
    conditions = [rule for rule in lists.DENY if isinstance(rule, lists.When)]
    return place_in_lists(layer, place) is None and any(
        rule.matches(layer, name, value) for rule in conditions
    )


def _named_policy(name):
    message = (
        f"{name!r} is no dtype policy. Pass 'mixed_bfloat16', 'mixed_float16', a float "
        "dtype such as 'float32', or 'auto' to pick by hardware."
    )
    is_map = isinstance(name, keras.dtype_policies.DTypePolicyMap)
    if isinstance(name, keras.DTypePolicy) and not is_map:
        name = name.name
    if not isinstance(name, str):
        raise ValueError(f"{message} Got a {type(name).__name__}, not a name.")
    try:
        policy = keras.dtype_policies.get(name)
    except (ValueError, TypeError) as error:
        raise ValueError(message) from error
    if not keras.backend.is_float_dtype(policy.compute_dtype):
        raise ValueError(message)
    return policy


def _checked_rules(name, rules):
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        rules = (rules,)
    return tuple(_checked_rule(name, rule) for rule in rules)


def _checked_rule(name, rule):
    if inspect.isclass(rule) and issubclass(rule, keras.layers.Layer):
        return rule
    if not isinstance(rule, str):
        raise TypeError(
            f"Policy({name}=[...]): each rule must be a layer's name, a regular "
            f"expression or a layer class. Got {rule!r} of type "
            f"{type(rule).__name__}. For a single layer pass its name."
        )
    if not rule:
        raise ValueError(
            f"Policy({name}=['']): an empty rule matches no layer. Leave it out, or "
            "write '.*' for every layer."
        )
    try:
        re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"Policy({name}=[{rule!r}]): the rule is no regular expression "
            f"({error}). Write for example 'block_.*' for names that start with "
            f"block_, or {re.escape(rule)!r} for this very name."
        ) from error
    return rule


def _quantized_inside(layer):
    """Return the policies of quantized layers inside ``layer``, by path, as configs.

    A layer that makes others, such as attention, does not save their policies, and
    gives them its own as it is loaded.
    """
    if layer is None:
        return {}
    return {
        path.removeprefix(f"{layer.name}/"): keras.dtype_policies.serialize(policy)
        for inner, path in layers_with_paths(layer)
        if inner is not layer and (policy := inner.dtype_policy).quantization_mode
    }


def _rule_config(rule):
    """Return a rule as JSON: Keras's own classes by module, others as registered."""
    if isinstance(rule, str):
        return rule
    for module, public in _KERAS_MODULES.items():
        if getattr(public, rule.__name__, None) is rule:
            return {"module": module, "class_name": rule.__name__}
    return {"registered_name": keras.saving.get_registered_name(rule)}


def _rule_from(config, custom_objects):
    if not isinstance(config, dict):
        return config
    if "module" in config:
        return getattr(_KERAS_MODULES[config["module"]], config["class_name"])
    name = config["registered_name"]
    found = keras.saving.get_registered_object(name, custom_objects)
    if found is None:
        raise ValueError(
            f"A saved Policy keeps layers of class '{name}' in float32, but no such "
            "class is known. Decorate it with "
            "@keras.saving.register_keras_serializable(), or pass custom_objects."
        )
    return found


_DECISIVE = {"autocast", "built", private.graphs.SEQUENTIAL_LAYERS, *lists.CONDITIONS}


@functools.cache
def _no_rules():
    """Return the policy that stands for having none of keras_mp's."""
    return Policy("float32")


@functools.cache
def _watch_layers():
    """Have layers obey policies as they get them, from the first `Policy` on."""
    if not private.layers.layer_hook(_choose, _attached, _assigned):
        warnings.warn(
            f"keras_mp.Policy: Keras {keras.__version__} does not tell when a layer "
            "gets its policy. Rules and float32 layers take effect when a model is "
            "compiled: use keras_mp.compile or keras_mp.convert.",
            stacklevel=4,
        )
