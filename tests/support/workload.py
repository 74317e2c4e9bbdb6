"""The smallest workload that the benchmarks can time."""

import keras
import numpy as np

from benchmarks.workloads import Workload

TINY = Workload(
    "tiny",
    lambda: keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (3, 1))]),
    lambda rows: (np.ones((rows, 4), "float32"), np.ones((rows, 1), "float32")),
    8,
)
