"""What is special about several replicas; the one room that knows ``tf.distribute``."""

from keras_mp.distribute.empty import unless_empty
from keras_mp.distribute.scope import check_scope, scope_of
from keras_mp.distribute.step import (
    Step,
    copies_of,
    count_if_any,
    has_strategy,
    replicas,
    restore_unless,
    run_once,
    run_step,
    share_variables,
)
from keras_mp.distribute.trainer import mend

__all__ = [
    "Step",
    "check_scope",
    "copies_of",
    "count_if_any",
    "has_strategy",
    "mend",
    "replicas",
    "restore_unless",
    "run_once",
    "run_step",
    "scope_of",
    "share_variables",
    "unless_empty",
]
