"""The harness finds faults that are put before it, and none where there are none."""

import keras
import numpy as np
import pytest
from keras import ops

from conformance import measure
from conformance.bounds import failure
from conformance.cases import Case, Given, Subject
from conformance.run import REFERENCE, Start, arguments, reference


class Scaled(keras.layers.Layer):
    """A product with one weight, and what a test makes of it."""

    def __init__(self, then=lambda x: x):
        super().__init__()
        self.then = then

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(1, 1), initializer="ones")

    def call(self, inputs):
        return self.then(inputs * self.kernel)


def case_of(then, inputs=(1.0, 2.0, 3.0, 0.1), name="ordinary", **options):
    def build(mode):
        layer = Scaled(then)
        return Subject(layer, layer)

    scenarios = {name: lambda random: Given(np.array([inputs]).T)}
    return Case("layers", "Scaled", build, scenarios, **options)


def measured(case, policy="mixed_float16", name="ordinary"):
    (result,) = measure.measure(case, name, policy, ["keras"])
    return result


@pytest.mark.parametrize("policy", measure.POLICIES)
def test_what_is_exact_has_no_error(policy):
    result = measured(case_of(lambda x: x), policy)
    assert result.forward == measure.Error() and failure(result) is None
    assert result.backward.ulps < 1  # the weight's gradient is a sum


@pytest.mark.parametrize("policy", measure.POLICIES)
def test_a_rounding_is_half_a_unit_at_most(policy):
    result = measured(case_of(lambda x: x / 3), policy)
    assert 0 < result.forward.ulps <= 0.5


def low(x):
    return keras.backend.standardize_dtype(x.dtype) != "float32"


def test_not_finite_where_float32_is_and_the_dtype_could():
    result = measured(case_of(lambda x: (x * 30000.0) / 30000.0))
    # 3 x 30,000 is beyond float16, 2 x 30,000 is not.
    assert result.forward.nonfinite == 1 and result.forward.beyond == 0
    assert failure(result).endswith("not finite")


def test_what_the_dtype_cannot_hold_is_counted_apart():
    result = measured(case_of(lambda x: x * 30000.0))
    assert (result.forward.nonfinite, result.forward.beyond) == (0, 1)
    assert failure(result) is None


def test_an_exception_is_a_result():
    def broken(x):
        if low(x):
            raise TypeError("no \x1b[1mhalf\x1b[0m kernel")
        return x

    result = measured(case_of(broken))
    assert result.error == "TypeError: no half kernel"
    assert failure(result) == "TypeError"


def test_a_case_that_fails_in_float32_is_an_error_of_the_case():
    def broken(x):
        raise TypeError("never")

    with pytest.raises(RuntimeError, match="in float32 too.*never.*Mend the case"):
        measured(case_of(broken))


def test_a_wrong_integer_is_wrong_by_all():
    def count(x):
        return ops.cast(x + 2048.0, "int32")

    assert measured(case_of(count)).forward.ulps == 1024.0


def test_a_wrong_gradient_is_found():
    def blocked(x):
        return ops.stop_gradient(x) if low(x) else x

    result = measured(case_of(blocked))
    assert result.forward == measure.Error() and result.backward.ulps >= 1024.0


@pytest.mark.parametrize(
    "options", [dict(random="draws"), dict(unstable=("ordinary",))], ids=str
)
def test_only_finiteness_counts_where_values_cannot_be_compared(options):
    def double(x):
        return 2 * x if low(x) else x

    assert measured(case_of(double, **options)).forward.ulps == 0.0
    assert failure(measured(case_of(double))) is not None
    infinite = case_of(lambda x: (x * 30000.0) / 30000.0, **options)
    assert measured(infinite).forward.nonfinite == 1


def test_inputs_and_weights_are_rounded_first():
    result = measured(case_of(lambda x: x * 1000.0, inputs=(0.1, 0.1)))
    assert result.forward.ulps <= 0.5


def test_ids_are_not_rounded_first():
    result = measured(
        case_of(lambda x: x, inputs=(2049.0, 1.0), name="ids"), name="ids"
    )
    assert result.forward.ulps > 0.4


def start_of(case, name):
    given = arguments(case, name, "float16")
    return reference(case, name, given, "float16").start


def test_weights_are_halved_until_large_results_fit():
    case = case_of(lambda x: x * 8.0, inputs=(30000.0, 1.0), name="large")
    start = start_of(case, "large")
    (kernel,) = start.values
    assert kernel == 0.125
    assert measured(case, name="large").forward == measure.Error()


def test_gradients_are_scaled_into_the_range():
    assert start_of(case_of(lambda x: x), "ordinary").scale == 1.0
    assert start_of(case_of(lambda x: x * 1e-7), "ordinary").scale == 2.0**13
    large = start_of(case_of(lambda x: x * 1e6), "ordinary")
    assert large.scale < 1
    assert REFERENCE == "float32" and Start().values is None
