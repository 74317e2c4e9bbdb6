"""`Policy`: a dtype policy with layers that stay in float32."""

import copy
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_mp import hardware, precision_lists, private
from keras_mp.policies import rules
from keras_mp.saving import register

FLOAT32 = keras.DTypePolicy("float32")


@register
class Policy(keras.dtype_policies.DTypePolicyMap):
    """A dtype policy with rules for the layers that compute in float32.

    It can be used wherever Keras takes a dtype policy: in `keras_mp.set_policy`, as a
    layer's ``dtype``, in `keras_mp.compile`. A layer that a rule matches gets a plain
    float32 policy. Every other layer keeps the policy with its rules: they apply to
    layers that it creates later, and are saved in the ``.keras`` file.

    Args:
        name: A Keras policy name such as ``"mixed_float16"``, ``"mixed_bfloat16"`` or
            ``"float32"``; or ``"auto"`` to pick by hardware (`keras_mp.hardware`).
            Defaults to ``"auto"``.
        float32: Rules, each a layer class or a regular expression that must match in
            full a layer's name or a run of names in its path, such as ``"head"``,
            ``"block_.*"`` or ``"encoder/attention"``. A rule that matches a container
            covers everything inside. Rules on a path take effect as layers are put
            together and built, at the latest in `keras_mp.compile`.
        allow: Rules for layers that stay in low precision as with Keras alone, even if
            they are not safe in it (`keras_mp.lists.DENY`); ``".*"`` for all.
        follow: Rules for layers without weights that compute in the dtype of their
            inputs.
        strict: Whether a layer of your own raises an error if dtypes in its code do not
            match, for example where it multiplies its 16-bit input with a float32
            constant. Otherwise its code computes in float32 from then on, with a
            warning.

    Rules come before `keras_mp.lists`, by which every layer under a policy of
    keras_mp's is made safe: layers on ``DENY`` compute in float32, layers on ``FOLLOW``
    in the dtype that comes in. Of all others the parts that need it, such as the
    softmax of attention, compute in float32 inside.

    Layers that Keras names by itself (``softmax``, ``softmax_1``, ...) may have another
    name after loading: use a class as rule, or name them.

    Attributes:
        rules: The rules of ``float32``, as a tuple of strings and classes.
        allow: The rules of ``allow``, likewise.
        follow: The rules of ``follow``, likewise.
        strict: As given.
        reason: Why ``"auto"`` chose the policy; None if it was named.

    Raises:
        ValueError: There is no policy of that name, or a rule is not a regular
            expression.
        TypeError: A rule is neither a string nor a layer class.

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
        float32: Iterable[rules.Rule] | rules.Rule = (),
        *,
        allow: Iterable[rules.Rule] | rules.Rule = (),
        follow: Iterable[rules.Rule] | rules.Rule = (),
        strict: bool = False,
    ) -> None:
        from keras_mp.policies import hook  # which needs this class

        hook.install()
        self.reason: str | None = None
        if isinstance(name, str) and name == "auto":
            name, self.reason = hardware.recommend()
        super().__init__(default_policy=_named_policy(name))
        self.rules: tuple[rules.Rule, ...] = rules.checked_rules("float32", float32)
        self.allow: tuple[rules.Rule, ...] = rules.checked_rules("allow", allow)
        self.follow: tuple[rules.Rule, ...] = rules.checked_rules("follow", follow)
        self.strict: bool = bool(strict)
        self._layer: Any = None
        self._quantized: dict[str, keras.DTypePolicy] = {}

    @property
    def name(self) -> str:
        """Name of the policy for the layers that no rule matches."""
        return self.default_policy.name

    def matches(self, layer: keras.layers.Layer, path: str) -> bool:
        """Return whether a rule keeps ``layer``, found under ``path``, in float32."""
        return precision_lists.matches_any(self.rules, layer, path)

    @property
    def all_rules(self) -> tuple[rules.Rule, ...]:
        """The rules of all three lists, as one tuple."""
        return self.rules + self.allow + self.follow

    def for_layer(self, layer: keras.layers.Layer, path: str) -> keras.DTypePolicy:
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

    def get_config(self) -> dict[str, Any]:
        others = {"allow": self.allow, "follow": self.follow}
        saved = {"float32": self.rules, **{k: v for k, v in others.items() if v}}
        quantized = _quantized_inside(self._layer and self._layer())
        return {
            "name": self.name,
            **{
                name: list(map(rules.config_of, value)) for name, value in saved.items()
            },
            **({"strict": True} if self.strict else {}),
            **({"quantized": quantized} if quantized else {}),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Policy":
        own = {
            name: [rules.from_config(rule, custom_objects) for rule in value]
            for name, value in config.items()
            if name not in ("name", "quantized", "strict")
        }
        policy = cls(config["name"], strict=config.get("strict", False), **own)
        policy._quantized = {
            path: _saved_policy(path, quantized)
            for path, quantized in config.get("quantized", {}).items()
        }
        return policy

    def _key(self):
        return self.name, self.rules, self.allow, self.follow, self.strict

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        rules_of = {"float32": self.rules, "allow": self.allow, "follow": self.follow}
        shown = [
            f", {name}={[getattr(rule, '__name__', rule) for rule in own]}"
            for name, own in rules_of.items()
            if own or name == "float32"
        ]
        strict = ", strict=True" if self.strict else ""
        return f"<Policy '{self.name}'{''.join(shown)}{strict}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layer": None}

    # The mapping that Keras's base class is: empty, except that Keras writes
    # `layer.dtype_policy = policy` as an item. One object serves one layer, so the
    # item is that layer's new policy.

    def __getitem__(self, path: str) -> keras.DTypePolicy:
        return self.default_policy

    def __setitem__(self, path: str, policy: keras.DTypePolicy) -> None:
        private.layers.set_layer_policy(self._layer(), policy)

    def __contains__(self, path: object) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __bool__(self) -> bool:
        return True


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


def _saved_policy(path, config):
    policy = keras.dtype_policies.deserialize(config)
    if not isinstance(policy, keras.DTypePolicy):
        raise ValueError(
            f"A saved Policy names no dtype policy for layer '{path}'. Got {config!r}. "
            "The file is damaged or forged: take another copy of it."
        )
    return policy


def _quantized_inside(layer):
    """Return the policies of quantized layers inside ``layer``, by path, as configs.

    A layer that makes others, such as attention, does not save their policies, and
    gives them its own as it is loaded.
    """
    if layer is None:
        return {}
    return {
        path.removeprefix(f"{layer.name}/"): keras.dtype_policies.serialize(policy)
        for inner, path in private.layers.with_paths(layer)
        if inner is not layer and (policy := inner.dtype_policy).quantization_mode
    }
