"""What training needs to go on bit for bit: all state, and the place in the data."""

from keras_mp.resuming.files import (
    attach,
    load_training_state,
    restored_from,
    save_training_state,
)

__all__ = ["attach", "load_training_state", "restored_from", "save_training_state"]
