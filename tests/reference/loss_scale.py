"""Loss-scale rules in plain Python and NumPy, as the papers and manuals state them.

Each class keeps its own state and is stepped once per training step. ``step`` returns
True if the step should have lowered the scale but found it at the floor already.
"""

import numpy as np

#: Half the distance from 1 to the next float32: the largest relative rounding error.
FLOAT32_ROUNDING = 2.0**-24


class Dynamic:
    """GradScaler's rule with the options of Apex, Megatron-LM and fairseq.

    The scale is a float32, because a trainer stores it as one: products of two float32
    numbers are correctly rounded everywhere, so the scales can be compared exactly.
    """

    def __init__(
        self,
        initial_scale=2.0**15,
        growth_factor=2.0,
        backoff_factor=0.5,
        growth_interval=2000,
        min_scale=1.0,
        max_scale=2.0**24,
        hysteresis=1,
        hysteresis_refill="growth",
        overflow_tolerance=0.0,
        on_floor="hold",
    ):
        self.scale = np.float32(initial_scale)
        self.growth_factor = np.float32(growth_factor)
        self.backoff_factor = np.float32(backoff_factor)
        self.growth_interval = growth_interval
        self.floor = np.float32(min_scale)
        self.cap = np.float32(max_scale)
        self.hysteresis = hysteresis
        self.hysteresis_refill = hysteresis_refill
        self.overflow_tolerance = overflow_tolerance
        self.on_floor = on_floor
        self.clean_steps = 0
        self.hysteresis_left = hysteresis
        self.forget_overflows()

    def forget_overflows(self):
        self.steps = 0
        self.overflows = 0

    def step(self, finite, largest=None):
        self.steps += 1
        if finite:
            self.step_clean()
            return False
        self.clean_steps = 0
        self.overflows += 1
        if self.overflows / self.steps < self.overflow_tolerance:
            return False
        if self.hysteresis_left > 0:
            self.hysteresis_left -= 1
        if self.hysteresis_left > 0:
            return False
        at_floor = bool(self.scale <= self.floor)
        self.scale = max(self.scale * self.backoff_factor, self.floor)
        self.forget_overflows()
        return at_floor and self.on_floor == "raise"

    def step_clean(self):
        self.clean_steps += 1
        if self.hysteresis_refill == "clean":
            self.hysteresis_left = self.hysteresis
        if self.clean_steps < self.growth_interval:
            return
        self.clean_steps = 0
        self.scale = min(self.scale * self.growth_factor, self.cap)
        self.forget_overflows()
        if self.hysteresis_refill == "growth":
            self.hysteresis_left = self.hysteresis

    def state(self):
        """Return the state in the order of the rule's state.

        What decides nothing is not counted: a hysteresis of 1, a tolerance of 0.
        """
        tolerates = self.overflow_tolerance > 0
        return (
            float(self.scale),
            self.clean_steps,
            self.hysteresis_left if self.hysteresis > 1 else 1,
            self.steps if tolerates else 0,
            self.overflows if tolerates else 0,
        )


class Static:
    """One scale; clean steps are counted."""

    def __init__(self, scale):
        self.scale = np.float32(scale)
        self.clean_steps = 0

    def step(self, finite, largest=None):
        self.clean_steps = self.clean_steps + 1 if finite else 0
        return False

    def state(self):
        return float(self.scale), self.clean_steps


class LogMax:
    """OpenSeq2Seq's LogMax in float64, from the whole history instead of recursions.

    A bias-corrected running mean with decay d is the weighted mean in which an
    observation that is k steps old weighs d ** k; the bias-corrected E[x^2] - E[x]^2 is
    the weighted variance.
    """

    EXPONENTS = {"float16": 16, "bfloat16": 128}

    def __init__(
        self,
        initial_scale=2.0**15,
        dtype="float16",
        mean_decay=0.99,
        variance_decay=0.999,
        overflow_sigmas=3.09,
        backoff_factor=0.5,
        min_scale=1.0,
        max_scale=2.0**24,
    ):
        self.scale = float(initial_scale)
        self.exponent = self.EXPONENTS[dtype]
        self.mean_decay = mean_decay
        self.variance_decay = variance_decay
        self.overflow_sigmas = overflow_sigmas
        self.backoff_factor = backoff_factor
        self.floor = min_scale
        self.cap = max_scale
        self.clean_steps = 0
        self.seen = []
        #: The largest number that any of `seen` was computed from.
        self.reach = 0.0

    def step(self, finite, largest=None):
        if finite:
            self.clean_steps += 1
            if largest == 0:
                return False
            self.observe(np.log2(np.float64(largest)))
            highest = self.cap
        else:
            self.clean_steps = 0
            self.observe(self.exponent, -np.log2(self.scale))
            highest = self.scale * self.backoff_factor
        mean, _ = self.moments(self.mean_decay)
        _, deviation = self.moments(self.variance_decay)
        exponent = self.exponent - (mean + self.overflow_sigmas * deviation)
        # An exponent beyond 1000 ends at the cap anyway and would overflow a float.
        wanted = min(2.0 ** min(exponent, 1000.0), highest)
        self.scale = min(max(wanted, self.floor), self.cap)
        return False

    def observe(self, *terms):
        self.seen.append(sum(terms))
        self.reach = max(self.reach, *(abs(term) for term in terms))

    def moments(self, decay):
        """Return the weighted mean and standard deviation of what was seen."""
        seen = np.array(self.seen)
        weights = decay ** np.arange(len(seen))[::-1]
        weights = weights / weights.sum()
        mean = (weights * seen).sum()
        return mean, np.sqrt((weights * (seen - mean) ** 2).sum())

    def relative_tolerance(self):
        """Return how far a float32 evaluation of the scale may be from this one.

        Each of n steps rounds each running moment a few times, and the errors of E[x^2]
        and E[x]^2 are relative to x^2, not to their difference: the variance is off by
        up to about (2n + 8) roundings of x^2. Its root is off by that over the
        deviation or, for a small deviation, by the root of it. The mean is off by
        (2n + 8) roundings of x, and 2 ** exponent and log2 by a few roundings of an
        exponent of up to 128. "x" is `reach` here: the x of an overflow is a difference
        of two numbers that may both be larger.
        """
        if not self.seen:
            return FLOAT32_ROUNDING
        _, deviation = self.moments(self.variance_decay)
        roundings = (2 * len(self.seen) + 8) * FLOAT32_ROUNDING
        variance = roundings * self.reach**2
        slip = np.sqrt(variance)
        if deviation > slip:
            slip = variance / deviation
        in_exponent = self.overflow_sigmas * slip + roundings * (self.reach + 128)
        return 2.0**in_exponent - 1.0
