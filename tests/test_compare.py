"""Float32 and mixed precision side by side: tasks, processes, reports."""

import contextlib
import json
import multiprocessing
import operator
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import cli
from keras_mp.compare import custom, report, runner, tasks, worker

TIMEOUT = 240  # seconds, for runs that must not hang


def save_model(path, policy="float32", compiled=True, outputs=3):
    last = "softmax" if outputs > 1 else None
    with keras_mp.policy_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.Dense(outputs, activation=last, dtype="float32"),
            ]
        )
    if compiled:
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        loss = "sparse_categorical_crossentropy"
        keras_mp.compile(model, optimizer, loss, metrics=["accuracy"])
    model.save(path)
    return str(path)


def save_data(path, samples=50, features=4, **arrays):
    x = np.random.default_rng(0).integers(0, 255, (samples, features), dtype="uint8")
    np.savez(path, x=x, y=(x[:, 0] > 127).astype("int64"), **arrays)
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [
        "--model",
        save_model(tmp_path / "mine.keras"),
        "--data",
        save_data(tmp_path / "mine.npz"),
        "--output",
        str(tmp_path / "out"),
    ]


def make_run(policy, losses, scales=None, skipped=0):
    """A run of two epochs, a step in 10 ms, the first in 1 s."""
    half = len(losses) // 2
    scales = scales or [None] * len(losses)
    epochs = [
        {
            "losses": losses[part],
            "seconds": [1.0 if part.start == 0 else 0.01] + [0.01] * (half - 1),
            "scales": scales[part],
            "skipped": skipped,
            "validation": {"accuracy": 0.5, "loss": 1.0},
            "peak_memory": 3 * 2**20,
        }
        for part in (slice(0, half), slice(half, None))
    ]
    ready = {
        "device": "a CPU",
        "notes": [],
        "parameters": 7,
        "epochs": 2,
        "batch_size": 4,
        "steps_per_epoch": half,
    }
    return runner.Run(policy, ready, epochs)


RUNS = [
    make_run("float32", [2.0, 1.0, 0.5, 0.25]),
    make_run("mixed_float16", [None, 1.0, 0.5, 0.25], [8.0, 4.0, 4.0, 8.0], skipped=1),
]


def comparison(runs):
    return report.Comparison(tasks.Job(), "a task", runs[-1].policy, "why", runs)


def test_rows_hold_the_comparison():
    float32, mixed = report.rows(RUNS)
    assert float32["policy"] == "float32" and float32["speed_up"] is None
    assert float32["ms_per_step"] == pytest.approx(10)  # not the compiling step
    assert float32["final_scale"] is None and float32["steps_skipped"] == 0
    assert mixed["difference"] == 0 and mixed["speed_up"] == pytest.approx(1)
    assert mixed["final_scale"] == 8 and mixed["steps_skipped"] == 1
    assert mixed["peak_memory_mib"] == 3


def test_the_table_is_aligned_and_narrow():
    lines = report.table(RUNS).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert lines[0].split("  ")[-1] == "skipped"
    assert re.split(r" {2,}", lines[2]) == [
        "mixed_float16", "0.5000", "+0.0000", "10.0", "1.00x", "3 MiB", "8", "1"
    ]  # fmt: skip


def test_a_lone_run_is_a_table_of_one_row(tmp_path):
    alone = RUNS[:1]
    assert len(report.table(alone).splitlines()) == 2
    report.write_json(comparison(alone), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["speed_up_per_epoch"] == []
    report.write_plot(comparison(alone), tmp_path / "a.png")


def test_steps_without_a_number_are_null_and_not_averaged(tmp_path):
    report.write_json(comparison(RUNS), tmp_path / "a.json")
    mixed = json.loads((tmp_path / "a.json").read_text())["runs"]["mixed_float16"]
    assert mixed["steps"]["loss"] == [None, 1.0, 0.5, 0.25]
    assert mixed["epochs"]["loss"] == [1.0, 0.375]
    assert worker.finite(float("nan")) is None and worker.finite(None) is None


def test_a_run_of_one_step_has_no_time():
    run = make_run("float32", [1.0, 1.0])
    run.epochs.pop()
    assert run.step_time() is None
    assert "-" in report.table([run])


@pytest.mark.parametrize("task", [tasks.DIGITS, tasks.TEXT])
def test_built_in_tasks_are_sound(task):
    job = tasks.with_defaults(tasks.Job(seed=3), task)
    data = task.load(job)
    assert len(data.x) == len(data.y) > 1000 and len(data.x_val) == len(data.y_val)
    assert np.array_equal(data.x, task.load(job).x)
    model = task.build(job, "mixed_bfloat16", data)
    outputs = model(data.x[:2])
    assert outputs.dtype == "float32" and outputs.shape[0] == 2
    assert {layer.compute_dtype for layer in model.layers} == {"bfloat16", "float32"}


def test_text_targets_are_the_next_characters():
    data = tasks.load_text(tasks.Job())
    assert np.array_equal(data.x[:, 1:], data.y[:, :-1])


@pytest.mark.parametrize("kind", ["replicas", "workers"])
def test_batches_divide_by_the_replicas_or_workers(kind):
    data = tasks.Data(np.zeros(9), np.zeros(9), np.zeros(5), np.zeros(5))
    fitted, size = tasks.fit_batches(data, tasks.Job(batch_size=16, **{kind: 2}))
    assert size == 8 and len(fitted.x_val) == 4
    assert fitted.notes == [
        "batch size 8 instead of 16",
        "4 of the 5 validation samples used",
    ]
    with pytest.raises(tasks.UserError, match=f"fewer {kind}"):
        tasks.fit_batches(data, tasks.Job(batch_size=1, **{kind: 2}))


def test_batches_are_shuffled_alike_for_a_seed():
    x = np.arange(10)
    passes = [
        [
            first
            for first, _ in worker.batches(x, x, 4, seed).take(4).as_numpy_iterator()
        ]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[0], passes[2])
    assert not np.array_equal(passes[0][:2], passes[0][2:])  # another epoch


def load_own(tmp_path, **options):
    job = tasks.Job("custom", data=save_data(tmp_path / "d.npz"), **options)
    return job, custom.load_data(job)


def test_own_model_keeps_its_weights_loss_and_optimizer(tmp_path):
    path = save_model(tmp_path / "m.keras", policy="mixed_float16")
    job, data = load_own(tmp_path, model=path)
    assert len(data.x) == 40 and len(data.x_val) == 10
    float32 = custom.build(job, "float32", data)
    assert isinstance(float32.optimizer, keras.optimizers.SGD)
    assert float32.optimizer.momentum == 0.9 and float32.optimizer.iterations == 0
    mixed = custom.build(job, "mixed_float16", data)
    assert isinstance(mixed.optimizer.inner_optimizer, keras.optimizers.SGD)
    for a, b in zip(float32.weights, mixed.weights, strict=True):
        assert np.array_equal(a, b)


def test_options_replace_what_the_model_was_compiled_with(tmp_path):
    options = {"loss": "mse", "optimizer": "adam", "learning_rate": 0.25}
    path = save_model(tmp_path / "m.keras", outputs=1)
    job, data = load_own(tmp_path, model=path, **options)
    model = custom.build(job, "float32", data)
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    "compiled, features, options, expected",
    [
        (False, 4, {}, "add --loss"),
        (False, 4, {"loss": "nonsense"}, "--loss nonsense"),
        (True, 4, {"optimizer": "nonsense"}, "--optimizer nonsense"),
        (True, 5, {}, "reshape the arrays"),
    ],
)
def test_own_models_that_cannot_be_trained(
    tmp_path, compiled, features, options, expected
):
    model = save_model(tmp_path / "m.keras", compiled=compiled)
    data = save_data(tmp_path / "d.npz", features=features)
    job = tasks.Job("custom", model=model, data=data, **options)
    with pytest.raises(tasks.UserError, match=expected):
        custom.build(job, "float32", custom.load_data(job))


def test_own_model_end_to_end_in_float16(files, capfd):
    options = ["--policy", "mixed_float16", "--epochs", "2", "--batch-size", "8"]
    assert cli.main(["train", *files, *options]) == 0
    output, errors = capfd.readouterr()
    assert "val accuracy" in output and errors == ""
    assert all(len(line) <= 100 for line in output.split("policy:")[0].splitlines())
    folder = pathlib.Path(files[-1])
    png = folder / "mine-mixed_float16.png"
    assert str(png) in output and png.read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "mine-mixed_float16.json").read_text())
    assert [row["policy"] for row in written["table"]] == ["float32", "mixed_float16"]
    assert written["table"][1]["final_scale"] == 2**15
    assert written["table"][1]["speed_up"] > 0
    assert all(row["peak_memory_mib"] > 50 for row in written["table"])
    assert written["options"]["epochs"] == 2 and written["versions"]["keras"]
    for run in written["runs"].values():
        assert len(run["steps"]["loss"]) == 10 and len(run["epochs"]["loss"]) == 2
    starts = [run["steps"]["loss"][0] for run in written["runs"].values()]
    assert starts[0] == pytest.approx(starts[1], rel=0.02)  # the same weights, batch


def test_replicas_on_logical_cpus(files, capfd):
    options = ["--replicas", "2", "--policy", "mixed_float16"]
    sizes = ["--epochs", "1", "--batch-size", "9"]
    assert cli.main(["train", *files, *options, *sizes]) == 0
    output = capfd.readouterr().out
    assert "2 logical CPUs of" in output or "2 x" in output
    assert "batch size 8 instead of 9" in output


def test_workers_train_as_one_process_does(files, capfd):
    options = ["--policy", "mixed_float16", "--epochs", "2", "--batch-size", "8"]
    assert cli.main(["train", *files, *options, "--workers", "2"]) == 0
    assert not multiprocessing.active_children()
    output, errors = capfd.readouterr()
    assert "2 processes on " in output and errors == ""
    path = pathlib.Path(files[-1], "mine-mixed_float16.json")
    written = json.loads(path.read_text())
    assert written["options"]["workers"] == 2
    assert written["table"][1]["final_scale"] == 2**15
    float32, mixed = written["runs"].values()
    job = tasks.Job("custom", epochs=2, batch_size=8, model=files[1], data=files[3])
    (one,) = runner.compare(job, ["float32"], print)
    # Sums are in another order; float16 rounds at 2**-11.
    for run, tolerance in ((float32, 1e-5), (mixed, 0.01)):
        assert run["steps"]["loss"] == pytest.approx(one.series("losses"), tolerance)
        validation = run["epochs"]["validation"][-1]["loss"]
        expected = one.epochs[-1]["validation"]["loss"]
        assert validation == pytest.approx(expected, tolerance)


def test_what_a_child_refuses_is_told_without_a_traceback(tmp_path, files, capfd):
    save_model(tmp_path / "mine.keras", compiled=False)
    assert cli.main(["train", *files]) == 2
    errors = capfd.readouterr().err
    assert "add --loss" in errors and "Traceback" not in errors


def test_a_child_that_fails_shows_its_last_lines(files, capfd, monkeypatch):
    monkeypatch.setattr(worker, "main", operator.truediv)  # fails: three arguments
    assert cli.main(["train", *files]) == 1
    errors = capfd.readouterr().err
    assert "the float32 run ended with exit code 1" in errors
    assert "| TypeError: truediv expected 2 arguments" in errors
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "workers, name",
    [("1", "the mixed_bfloat16 run"), ("2", "worker 1 of the float32 run")],
)
def test_a_killed_child_does_not_hang(files, workers, name):
    """SIGKILL in the middle, as by the system when memory runs out."""
    script = """
        import multiprocessing, sys
        from keras_mp import cli
        def show(line):
            print(line)
            if "model:" in line:
                (second,) = (
                    process for process in multiprocessing.active_children()
                    if process.name.endswith("-2")
                )
                second.kill()
        if __name__ == "__main__":
            cli.show = show
            sys.exit(cli.main(sys.argv[1:]))
    """
    options = ["--policy", "mixed_bfloat16", "--workers", workers]
    command = [sys.executable, "-c", textwrap.dedent(script), "train", *files, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 1
    ended = f"{name} ended with exit code -9 (killed: probably out of memory)"
    assert ended in done.stderr


def test_the_killed_worker_is_named_not_those_that_failed_after_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    children = []
    for name, end in (("peer", (os._exit, (1,))), ("victim", (os.abort, ()))):
        ours, theirs = context.Pipe()
        process = context.Process(target=end[0], args=end[1])
        process.start()
        process.join(TIMEOUT)
        theirs.close()
        (tmp_path / name).write_text("")
        children.append(runner.Child(name, process, ours, str(tmp_path / name)))
    with pytest.raises(runner.ChildError, match="victim ended with exit code -6"):
        runner.Team("float32", children).wait("ready")


def group_ends(group, seconds):
    """Whether all processes of the group end in this time."""
    for _ in range(seconds * 10):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupting_ends_the_children(files, workers):
    script = """
        import signal, sys
        from keras_mp import cli
        if __name__ == "__main__":
            # Whoever started the tests in the background had it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.exit(cli.main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), "train", *files]
    process = subprocess.Popen(
        [*command, "--epochs", "100000", "--workers", workers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        any(re.match(" +1 ", line) for line in process.stdout)  # until then
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=TIMEOUT)[1]
        assert process.returncode == 130
        assert "interrupted" in errors and "Traceback" not in errors
        assert group_ends(process.pid, seconds=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, good", [("digits", lambda v: v > 0.98), ("text", lambda v: v < 2.5)]
)
def test_the_full_comparison(tmp_path, task, good):
    command = [sys.executable, "-m", "keras_mp", "train", "--task", task]
    options = ["--policy", "mixed_bfloat16", "--output", str(tmp_path)]
    subprocess.run([*command, *options], check=True, timeout=600)
    (path,) = tmp_path.glob("*.json")
    float32, mixed = json.loads(path.read_text())["table"]
    assert good(float32["validation"]) and good(mixed["validation"])
