"""Losses that take logits or probabilities."""

from keras import losses

from keras_mp.precision_lists.sources import Source, listed

#: Losses of logits or probabilities, as classes.
LOGIT_LOSSES = listed(
    losses,
    {
        Source.KERAS: (
            "BinaryCrossentropy",
            "BinaryFocalCrossentropy",
            "CTC",
            "CategoricalCrossentropy",
            "CategoricalFocalCrossentropy",
            "CategoricalGeneralizedCrossEntropy",
            "CategoricalHinge",
            "Dice",
            "Hinge",
            "KLDivergence",
            "SparseCategoricalCrossentropy",
            "SquaredHinge",
            "Tversky",
        ),
    },
)

#: The same, as functions.
LOGIT_FUNCTIONS = listed(
    losses,
    {
        Source.KERAS: (
            "binary_crossentropy",
            "binary_focal_crossentropy",
            "categorical_crossentropy",
            "categorical_focal_crossentropy",
            "categorical_generalized_cross_entropy",
            "categorical_hinge",
            "ctc",
            "dice",
            "hinge",
            "kl_divergence",
            "sparse_categorical_crossentropy",
            "squared_hinge",
            "tversky",
        ),
    },
)
