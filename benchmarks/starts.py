"""How long training takes to its first step: building, compiling, tracing.

Each call builds the model anew, as a new process or a new search of parameters does.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

import keras_mp
from benchmarks import timing
from benchmarks.steps import COMPILE
from benchmarks.workloads import SEED, WORKLOADS, Workload
from keras_mp.processes import alone
from keras_mp.tables import markdown, number

#: What is divided by what.
PAIRS = [("keras_mp", "bare"), ("keras_mp", "keras")]


def measure(
    models: list[str], policy: str, rounds: int, show: Callable[[str], None]
) -> list[dict]:
    """Time a ``fit`` of one step with Adam, from the model's constructor on.

    Returns:
        Dicts of ``model`` and a `timing.summary` of the candidates.
    """
    results = []
    for model in models:
        show(f"  starts: {WORKLOADS[model].title}")
        results.append({"model": model} | alone(_time, model, policy, rounds))
    return results


def table(results: list[dict]) -> str:
    """Seconds up to the end of the first step, and keras_mp's beside the others'."""
    head = ["model", *(f"{name}, s" for name in COMPILE)]
    for above, below in PAIRS:
        head += [f"{above} / {below}", "±"]
    rows = [
        [
            WORKLOADS[result["model"]].title,
            *(number(result["seconds"][name]) for name in COMPILE),
            *(
                number(part)
                for above, below in PAIRS
                for part in result["ratios"][f"{above} / {below}"]
            ),
        ]
        for result in results
    ]
    return markdown(head, rows)


def start(workload: Workload, candidate: str, policy: str) -> Callable[[], keras.Model]:
    """Return a function that builds a model, makes its first step and returns it."""
    x, y = workload.batch(workload.rows)

    def run():
        keras.backend.clear_session()
        keras.utils.set_random_seed(SEED)
        with keras_mp.policy_scope(policy):
            model = workload.build()
        COMPILE[candidate](model, keras.optimizers.Adam(1e-3), loss=workload.loss)
        model.fit(x, y, batch_size=workload.rows, verbose=0)
        return model

    return run


def _time(model: str, policy: str, rounds: int) -> dict:
    candidates = {name: start(WORKLOADS[model], name, policy) for name in COMPILE}
    return timing.summary([timing.paired_rounds(candidates, rounds)], PAIRS)
