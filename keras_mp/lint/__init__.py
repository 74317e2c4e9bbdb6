"""What is wrong with how a model uses low precision: each line, a layer and a fix.

Nothing is changed, and nothing is run: the dtypes that the model returns come from a
trace of its call. Each check has a file of its own.
"""

from keras_mp.lint.checks import lint
from keras_mp.lint.finding import Finding

__all__ = ["Finding", "lint"]
