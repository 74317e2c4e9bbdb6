"""What the numbers of one training batch do in every layer, forward and backward.

One instrument: `Taps` keeps what layers read and return, `Pass` runs a batch forward
and backward, `Measures` says what the numbers of a tensor are like, and a `Record`
holds them all. Diagnosis and monitors are views of that record.
"""

from keras_mp.recording.feed import BatchCallback, executed, share, shares
from keras_mp.recording.formats import FLOAT32, FORMATS, Format, coarsest
from keras_mp.recording.measures import Error, Measures, merged
from keras_mp.recording.probe import Probe, Reading
from keras_mp.recording.record import LayerCall, Record, Recorder, Tensor, Weight
from keras_mp.recording.shadow import GradientError, Shadow
from keras_mp.recording.step import Batch
from keras_mp.recording.writers import CsvWriter, Snapshot, TensorBoardWriter

__all__ = [
    "FLOAT32",
    "FORMATS",
    "Batch",
    "BatchCallback",
    "CsvWriter",
    "Error",
    "Format",
    "GradientError",
    "LayerCall",
    "Measures",
    "Probe",
    "Reading",
    "Record",
    "Recorder",
    "Shadow",
    "Snapshot",
    "Tensor",
    "TensorBoardWriter",
    "Weight",
    "coarsest",
    "executed",
    "merged",
    "share",
    "shares",
]
