"""What is special about several replicas; the one room that knows ``tf.distribute``."""

from keras_mp.distribute.copies import (
    assign_copies,
    number_of_copies,
    read_copies,
)
from keras_mp.distribute.devices import (
    copies_of,
    count_if_any,
    has_strategy,
    meet,
    no_value,
    replicas,
    replicas_here,
    restore_unless,
    run_once,
    share_variables,
)
from keras_mp.distribute.empty import unless_empty
from keras_mp.distribute.reduction import sum_over_replicas
from keras_mp.distribute.scope import check_apply, check_scope, scope_of
from keras_mp.distribute.trainer import prepare_steps
from keras_mp.distribute.workers import is_alone, replicas_of, smallest_over_workers

__all__ = [
    "assign_copies",
    "check_apply",
    "check_scope",
    "copies_of",
    "count_if_any",
    "has_strategy",
    "is_alone",
    "meet",
    "no_value",
    "number_of_copies",
    "prepare_steps",
    "read_copies",
    "replicas",
    "replicas_here",
    "replicas_of",
    "restore_unless",
    "run_once",
    "scope_of",
    "share_variables",
    "smallest_over_workers",
    "sum_over_replicas",
    "unless_empty",
]
