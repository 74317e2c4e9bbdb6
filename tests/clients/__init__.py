"""Models of packages written for Keras 3, trained with keras_mp and without."""
