"""What is special about several replicas; the one room that knows ``tf.distribute``."""

from keras_mp.distribute.step import (
    has_strategy,
    restore_unless,
    run_step,
    values_of,
)

__all__ = ["has_strategy", "restore_unless", "run_step", "values_of"]
