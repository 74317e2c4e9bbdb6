"""What every loss-scale rule promises, and `keras_mp.scaling.get`."""

import copy
import dataclasses
import json

import keras
import numpy as np
import pytest
from reference.feeding import KINDS, TENSOR_KINDS, dtypes, held, numbers
from reference.loss_scale import FLOAT32_ROUNDING, LogMax

from keras_mp import scaling
from keras_mp.scaling import (
    DynamicLossScale,
    LogNormalLossScale,
    LossScale,
    StaticLossScale,
    Verdict,
)

#: Rules with no default left. The factors are exact in no float type, so that a wrong
#: type shows.
RULES = [
    StaticLossScale(96.0),
    DynamicLossScale(
        initial_scale=48.0,
        growth_factor=3.1,
        backoff_factor=0.3,
        growth_interval=2,
        min_scale=2.0,
        max_scale=200.0,
        hysteresis=2,
        hysteresis_refill="clean",
        overflow_tolerance=0.6,
        on_floor="raise",
    ),
    LogNormalLossScale(
        initial_scale=48.0,
        dtype="bfloat16",
        mean_decay=0.5,
        variance_decay=0.75,
        overflow_sigmas=2.0,
        backoff_factor=0.25,
        min_scale=2.0,
        max_scale=2.0**126,
    ),
]
#: Verdicts that reach every branch of the rules.
SCRIPT = [
    *((True, 2.0**8), (True, 2.0**-9), (True, 2.0**3), (True, 0.0), (True, 2.0**12)),
    *((False, np.inf), (False, np.nan)) * 4,
    *((True, 2.0**-3), (True, 2.0**5), (False, np.inf), (True, 2.0**-6)),
]
COMPILED = [
    *RULES[:2],
    # The other choices compile to other graphs.
    DynamicLossScale(hysteresis=2, growth_interval=2),
    # float16 keeps x near 16 and so the roundings of x ** 2 small; the low
    # floor leaves the overflows room.
    dataclasses.replace(RULES[2], dtype="float16", min_scale=2.0**-60),
]

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.function needs TensorFlow"
)


def walk(rule, state):
    """Return the states after each step of the script, and the warnings, as numbers."""
    states = []
    for finite, largest in SCRIPT:
        verdict = Verdict(finite, np.float32(largest))
        stuck = bool(rule.exhausted(state, verdict))
        state = rule.update(state, verdict)
        states.append((*numbers(state), stuck))
    return states


@each_rule
def test_fields_cannot_be_assigned(rule):
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, 1.0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(rule, field.name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.something_else = 1.0


@each_rule
def test_equal_configs_are_equal_rules(rule):
    twin = type(rule)(**rule.get_config())
    assert twin == rule
    assert hash(twin) == hash(rule)
    name = "scale" if isinstance(rule, StaticLossScale) else "initial_scale"
    assert dataclasses.replace(rule, **{name: 50.0}) != rule


def test_rules_of_different_kinds_differ():
    assert DynamicLossScale() != LogNormalLossScale() != StaticLossScale(2.0**15)


@each_rule
def test_config_round_trip_leaves_the_dict_alone(rule):
    config = rule.get_config()
    before = copy.deepcopy(config)
    assert type(rule).from_config(config) == rule
    assert config == before
    assert json.loads(json.dumps(config)) == config
    config["initial_scale"] = config["scale"] = None
    assert rule.get_config() == before


def test_config_of_numpy_arguments_is_json_serialisable():
    rule = DynamicLossScale(initial_scale=np.float32(8), growth_interval=np.int64(5))
    assert json.loads(json.dumps(rule.get_config())) == rule.get_config()


@each_rule
def test_keras_saves_and_loads_a_rule_without_custom_objects(rule):
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    assert keras.saving.deserialize_keras_object(saved) == rule
    assert scaling.get(saved) == rule


@each_rule
def test_state_starts_as_numpy_scalars_with_keras_two_fields_first(rule):
    state = rule.init()
    assert state._fields[:2] == ("scale", "clean_steps")
    assert all(isinstance(value, np.generic) for value in state)
    assert state.scale == rule.initial_scale
    assert state.scale.dtype == np.float32
    assert state.clean_steps == 0


@each_rule
@pytest.mark.parametrize("kind", KINDS)
def test_update_leaves_its_input_alone(rule, kind):
    state = held(kind, rule.init())
    before, values = tuple(state), numbers(state)
    for finite, largest in SCRIPT:
        after = rule.update(state, Verdict(finite, np.float32(largest)))
        rule.adopt(rule.init()._replace(scale=0.0))
        assert type(after) is type(state)
        assert all(a is b for a, b in zip(state, before, strict=True))
        assert numbers(state) == values


@each_rule
@pytest.mark.parametrize("kind", KINDS)
def test_state_may_be_kept_in_any_form(rule, kind):
    # Exact: the forms hold the same float32 numbers and run the same operations.
    assert walk(rule, held(kind, rule.init())) == walk(rule, rule.init())


@each_rule
@pytest.mark.parametrize("kind", ["numpy", *TENSOR_KINDS])
def test_update_keeps_the_types_of_the_state(rule, kind):
    # A compiled loop carries the state, which must not change type from step to step.
    state = held(kind, rule.init())
    for finite, largest in SCRIPT:
        after = rule.update(state, Verdict(finite, np.float32(largest)))
        assert dtypes(after) == dtypes(state)
        state = after


@each_rule
@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
def test_default_float_type_of_keras_does_not_matter(rule, floatx):
    expected = walk(rule, rule.init())
    usual = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        assert walk(rule, rule.init()) == expected
        for kind in TENSOR_KINDS:
            state = held(kind, rule.init())
            assert walk(rule, state) == expected
            after = rule.update(state, Verdict(True, np.float32(1.0)))
            assert dtypes(after) == dtypes(state)
    finally:
        keras.config.set_floatx(usual)


@on_tensorflow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("kind", TENSOR_KINDS)
@pytest.mark.parametrize("rule", COMPILED, ids=lambda rule: type(rule).__name__)
def test_compiled_graph_gives_the_eager_states(rule, kind, jit_compile):
    import tensorflow as tf

    traces = []

    @tf.function(reduce_retracing=True, jit_compile=jit_compile)
    def step(state, finite, largest):
        traces.append(1)
        verdict = Verdict(finite, largest)
        return rule.update(state, verdict), rule.exhausted(state, verdict)

    state, graph = held(kind, rule.init()), []
    for finite, largest in SCRIPT:
        state, stuck = step(state, tf.constant(finite), tf.constant(largest, "float32"))
        graph.append((*numbers(state), bool(stuck)))
    eager = walk(rule, rule.init())
    assert len(traces) == 1
    if not rule.needs_largest:
        # One product and a clip: nothing that a compiler may round differently.
        assert graph == eager
        return
    # A compiler may fuse a product and a sum and so round once where the eager code
    # rounds twice. Both are within the reference's tolerance of the exact value.
    reference = LogMax(**rule.get_config())
    for compiled, direct, verdict in zip(graph, eager, SCRIPT, strict=True):
        reference.step(*verdict)
        reference.scale = direct[0]
        rel = 2 * reference.relative_tolerance()
        assert rel < 0.02
        assert compiled[0] == pytest.approx(direct[0], rel=rel)
        assert compiled[1] == direct[1]
        # The moments have no root of a difference in them: a few roundings a step.
        near = 8 * len(SCRIPT) * FLOAT32_ROUNDING
        np.testing.assert_allclose(
            compiled[2:], direct[2:], rtol=near, atol=near * reference.reach**2
        )


def test_script_reaches_every_branch_of_the_rules():
    dynamic = RULES[1]
    states = walk(dynamic, dynamic.init())
    assert {2.0, 200.0} <= {scale for scale, *_ in states}
    assert {0, 1, 2} <= {hysteresis_left for _, _, hysteresis_left, *_ in states}
    assert {stuck for *_, stuck in states} == {True, False}
    # An overflow that was tolerated: counted, and no hysteresis gone.
    assert any(state[2] == 2 and state[4] == 1 for state in states)
    log_normal = COMPILED[-1]
    scales = [scale for scale, *_ in walk(log_normal, log_normal.init())]
    # A scale at a limit would hide a difference.
    assert len(set(scales) - {log_normal.min_scale, log_normal.max_scale}) >= 6
    assert log_normal.min_scale in scales


def test_base_class_leaves_the_rule_open():
    rule = LossScale()
    with pytest.raises(NotImplementedError):
        rule.init()
    with pytest.raises(NotImplementedError):
        rule.update(None, Verdict(True))
    with pytest.raises(NotImplementedError):
        rule.adopt(None)
    assert rule.exhausted(None, Verdict(False)) is False
    assert not rule.needs_largest


def test_verdict_needs_no_largest():
    assert Verdict(True) == (True, None)


@each_rule
def test_get_returns_a_rule_as_it_is(rule):
    assert scaling.get(rule) is rule


def test_get_knows_the_names_of_rules_with_defaults():
    assert scaling.get("dynamic") == DynamicLossScale()
    assert scaling.get("log_normal") == LogNormalLossScale()


@pytest.mark.parametrize(
    "identifier",
    [
        *("static", "", "Dynamic", None, True, 128.0, [], ("dynamic",)),
        *(DynamicLossScale, {}, {"initial_scale": 8.0}),
        keras.saving.serialize_keras_object(keras.optimizers.SGD()),
    ],
    ids=lambda identifier: repr(identifier)[:20],
)
def test_get_names_what_is_no_rule(identifier):
    with pytest.raises(ValueError, match="not a loss-scale rule") as caught:
        scaling.get(identifier)
    assert repr(identifier) in str(caught.value)


@pytest.mark.parametrize("name", ["Unheard", "StaticLossScale"])
def test_get_names_a_dict_of_an_unknown_class(name):
    identifier = {"class_name": name, "config": {"scale": 128.0}}
    with pytest.raises(ValueError, match="not a loss-scale rule"):
        scaling.get(identifier)


def test_get_reports_a_bad_value_in_a_saved_rule():
    saved = keras.saving.serialize_keras_object(StaticLossScale(8.0))
    saved["config"]["scale"] = -1.0
    with pytest.raises((TypeError, ValueError), match="scale"):
        scaling.get(saved)


with_a_range = pytest.mark.parametrize(
    "rule_class", [DynamicLossScale, LogNormalLossScale], ids=lambda cls: cls.__name__
)


@with_a_range
@pytest.mark.parametrize(
    "config",
    [
        {"min_scale": 64.0, "initial_scale": 48.0, "max_scale": 32.0},
        {"min_scale": 64.0, "initial_scale": 32.0, "max_scale": 128.0},
        {"min_scale": 64.0, "initial_scale": 256.0, "max_scale": 128.0},
    ],
)
def test_scales_out_of_order_are_named(rule_class, config):
    with pytest.raises(ValueError, match=rule_class.__name__) as caught:
        rule_class(**config)
    for name, value in config.items():
        assert f"{name}={value!r}" in str(caught.value)


@with_a_range
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_scale", 1e39), ("min_scale", 1e-50), ("max_scale", 10**400)],
    ids=["inf", "zero", "no float either"],
)
def test_scale_that_float32_cannot_hold_is_refused(rule_class, name, value):
    # As a float32, the type of the state, these are inf and 0.
    with pytest.raises(ValueError, match=name):
        rule_class(**{name: value})


@with_a_range
@pytest.mark.parametrize(
    ("scale", "adopted"),
    [
        (0.0, 4.0),
        (-1.0, 4.0),
        (np.nan, 4.0),
        (-np.inf, 4.0),
        (np.inf, 1024.0),
        (3.9, 4.0),
        (4096.0, 1024.0),
        (48.0, 48.0),
    ],
)
def test_adopting_a_checkpoint_clips_its_scale_only(rule_class, scale, adopted):
    rule = rule_class(initial_scale=16.0, min_scale=4.0, max_scale=1024.0)
    others = range(7, 7 + len(rule.init()) - 1)
    state = type(rule.init())(scale, *others)
    assert numbers(rule.adopt(state)) == (adopted, *others)
