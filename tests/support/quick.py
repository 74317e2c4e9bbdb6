"""Less of what Python and TensorFlow do beside the work of a test."""

import gc


def save_time():
    """Have this process, which has imported all it needs, save a fifth of its time.

    Python's garbage collector looks through all objects whenever a quarter are new,
    which took 12 % of the suite's time. What was imported stays: TensorFlow and Keras
    are 400,000 objects, which it need not look at. It looks less often at the others.

    TensorFlow keeps, for each operation of a graph, the calls of Python that made it.
    That took 8 %, for pytest's calls are many, and is only for the reader of an error.
    """
    from tensorflow.python.util import tf_stack

    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    here = tf_stack.extract_stack()
    tf_stack.extract_stack = lambda stacklevel=1: here
