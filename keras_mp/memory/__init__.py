"""Peak memory of training, predicted from the graph of a step without running it.

The step that `fit` would run is traced for one batch size, on a copy of the model whose
variables are symbols and take no memory (`trace`). Walking through the graph then shows
which tensors are alive at the same time (`liveness`, which reads it with `graphs`), and
a model of TensorFlow's best-fit allocator shows how much memory it takes to hold them
(`allocator`).
"""

from keras_mp.memory.report import MemoryReport, memory_report

__all__ = ["MemoryReport", "memory_report"]
