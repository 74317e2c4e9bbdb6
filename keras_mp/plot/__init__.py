"""Pictures of loss scales, of errors and of what numbers do in each layer.

They need matplotlib, which keras_mp does not install. Each function returns a
`matplotlib.figure.Figure` that a notebook shows, and leaves the backend as it is.
"""

from keras_mp.plot.by_layer import errors, ranges
from keras_mp.plot.exponents import histograms
from keras_mp.plot.steps import scale

__all__ = ["errors", "histograms", "ranges", "scale"]
