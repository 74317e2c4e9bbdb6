"""Less of what Python does beside the work of a test."""

import gc


def save_time():
    """Have the garbage collector look less often, once all imports are done.

    Python looks through all objects whenever a quarter are new, which took 12 % of the
    suite's time. What was imported stays: TensorFlow and Keras are 400,000 objects,
    which it need not look at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
