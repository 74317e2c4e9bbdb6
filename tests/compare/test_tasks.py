"""The built-in tasks, their data, and the numbers of a job."""

import numpy as np
import pytest

from keras_mp import terminal
from keras_mp.compare import tasks


def test_the_scale_moves_and_skipped_steps_are_seen_to_change_nothing():
    job = tasks.Job("digits", 12, 128, steps=40)
    job = tasks.with_steps(job, tasks.DIGITS, 0, 0)
    assert job.growth_interval == 12 * 40 // tasks.GROWTHS
    assert tasks.loss_scaling(job, "mixed_float16").growth_interval == 60
    assert tasks.loss_scaling(job, "mixed_bfloat16") is None


@pytest.mark.parametrize("task", [tasks.DIGITS, tasks.TEXT])
def test_built_in_tasks_are_sound(task):
    job = tasks.Job("the task", task.epochs, task.batch_size, seed=3)
    data = task.load(job)
    assert len(data.x) == len(data.y) > 1000 and len(data.x_val) == len(data.y_val)
    assert np.array_equal(data.x, task.load(job).x)
    model = task.build(job, "mixed_bfloat16", data)
    outputs = model(data.x[:2])
    assert outputs.dtype == "float32" and outputs.shape[0] == 2
    assert {layer.compute_dtype for layer in model.layers} == {"bfloat16", "float32"}


def test_text_targets_are_the_next_characters():
    data = tasks.load_text(tasks.Job("text", 1, 32))
    assert np.array_equal(data.x[:, 1:], data.y[:, :-1])


@pytest.mark.parametrize("kind", ["replicas", "workers"])
def test_batches_divide_by_the_replicas_or_workers(kind):
    data = tasks.Data(np.zeros(9), np.zeros(9), np.zeros(5), np.zeros(5))
    fitted, size = tasks.fit_batches(data, tasks.Job("digits", 1, 16, **{kind: 2}))
    assert size == 8 and len(fitted.x_val) == 4
    assert fitted.notes == [
        "batch size 8 instead of 16",
        "4 of the 5 validation samples used",
    ]
    with pytest.raises(terminal.UserError, match=f"fewer {kind}"):
        tasks.fit_batches(data, tasks.Job("digits", 1, 1, **{kind: 2}))
