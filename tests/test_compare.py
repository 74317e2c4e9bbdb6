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
import types

import keras
import numpy as np
import pytest

import keras_mp
from keras_mp import cli, hardware, processes, terminal
from keras_mp.compare import custom, picture, report, runner, tasks, worker

TIMEOUT = 240  # seconds, for runs that must not hang
# Two runs instead of three, where any number of them does.
TWO_RUNS = ["--policy", "mixed_bfloat16"]


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


def make_run(policy, losses, scales=None, skips=(), changing=0, step=0.01):
    """A run of two epochs, a step in 10 ms, the first in 1 s."""
    half = len(losses) // 2
    scales = scales or [None] * len(losses)
    skips = [place in skips for place in range(len(losses))]
    epochs = [
        {
            "losses": losses[part],
            "seconds": [1.0 if part.start == 0 else step] + [step] * (half - 1),
            "scales": scales[part],
            "skips": skips[part],
            "skipped": sum(skips[: part.stop]),
            "changing": changing,
            "growths": 2,
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
        "growth_interval": 3,
    }
    return runner.Run(policy, ready, epochs)


RUNS = [
    make_run("float32", [2.0, 1.0, 0.5, 0.25]),
    make_run("mixed_bfloat16", [2.0, 1.0, 0.5, 0.25], step=0.005),
    make_run("mixed_float16", [None, 1.0, 0.5, 0.25], [8.0, 4.0, 4.0, 8.0], skips=[0]),
]


def comparison(runs, wide=(), spread=0.0, native=("mixed_bfloat16",)):
    task = tasks.Task("a task", 2, 4, None, None, wider=4, spread=spread)
    job = tasks.Job("digits", 2, 4)
    return report.Comparison(job, task, "Why.", native, runs, list(wide))


def test_rows_hold_the_comparison():
    float32, bfloat16, float16 = report.rows(comparison(RUNS))
    assert float32["policy"] == "float32" and float32["speed_up"] is None
    assert float32["ms_per_step"] == pytest.approx(10)  # not the compiling step
    assert float32["final_scale"] is None and float32["steps_skipped"] == 0
    assert bfloat16["difference"] == 0 and bfloat16["speed_up"] == pytest.approx(2)
    assert float16["final_scale"] == 8 and float16["steps_skipped"] == 1
    assert float16["growths"] == 2 and float16["peak_memory_mib"] == 3
    assert float16["emulated"] and float16["ms_per_step"] is None


def test_times_are_those_of_the_wide_network():
    wide = [
        make_run("float32", [1.0] * 4, step=0.2),
        make_run("mixed_bfloat16", [1.0] * 4, step=0.05),
    ]
    float32, bfloat16, float16 = report.rows(comparison(RUNS, wide))
    assert float32["ms_per_step"] == pytest.approx(200)
    assert bfloat16["speed_up"] == pytest.approx(4)
    assert float16["speed_up"] is None


def test_the_table_is_aligned_and_narrow():
    lines = report.table(comparison(RUNS)).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    assert lines[0].split("  ")[-1] == "skipped"
    assert [re.split(r" {2,}", line) for line in lines[2:]] == [
        ["mixed_bfloat16", "0.5000", "+0.0000", "5.0", "2.00x", "3 MiB", "-", "2", "0"],
        ["mixed_float16", "0.5000", "+0.0000", "-", "emulated", "3 MiB", "8", "2", "1"],
    ]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, "within the 0.0000 by which seeds alone move float32"),
        ({"spread": -1.0}, "more than the -1.0000 by which seeds alone"),
        ({"spread": None}, "other seeds (--seed) show"),
        ({}, "skipped 1 of 4 steps: the scale grew 2 times, after each 3 clean steps"),
        ({}, "none of them changed a weight"),
        ({}, "A step in mixed_bfloat16 took 0.50 of float32's time."),
        ({}, "mixed_float16 is emulated here"),
        ({"native": ()}, "mixed_bfloat16 and mixed_float16 are emulated here"),
        ({"native": ()}, "16 bits are faster than float32 on NVIDIA's GPUs"),
        ({"wide": RUNS[:2]}, "the same network, 4 times as wide (7 parameters"),
    ],
)
def test_sentences_say_what_was_shown(options, expected):
    assert expected in " ".join(report.sentences(comparison(RUNS, **options)))


def test_a_skipped_step_that_changes_something_is_told():
    fault = make_run("mixed_float16", [1.0] * 4, [8.0] * 4, skips=[1, 2], changing=1)
    told = " ".join(report.sentences(comparison([RUNS[0], fault])))
    assert "1 of them changed a weight, which is a fault" in told


def test_a_lone_run_is_a_table_of_one_row(tmp_path):
    alone = comparison(RUNS[:1])
    assert len(report.table(alone).splitlines()) == 2
    report.write_json(alone, tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["table"]) == 1
    picture.write(alone, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_steps_without_a_number_are_null_and_not_averaged(tmp_path):
    report.write_json(comparison(RUNS), tmp_path / "a.json")
    mixed = json.loads((tmp_path / "a.json").read_text())["runs"]["mixed_float16"]
    assert mixed["steps"]["loss"] == [None, 1.0, 0.5, 0.25]
    assert mixed["steps"]["skipped"] == [True, False, False, False]
    assert mixed["epochs"]["loss"] == [1.0, 0.375]
    assert worker.finite(float("nan")) is None and worker.finite(None) is None


def test_a_run_of_one_step_has_no_time():
    run = make_run("float32", [1.0, 1.0])
    run.epochs.pop()
    assert run.step_time() is None
    assert "-" in report.table(comparison([run]))


def test_the_scale_moves_and_skipped_steps_are_seen_to_change_nothing():
    job = tasks.Job("digits", 12, 128, steps=40)
    job = tasks.with_steps(job, tasks.DIGITS, 0, 0)
    assert job.growth_interval == 12 * 40 // tasks.GROWTHS
    assert tasks.loss_scaling(job, "mixed_float16").growth_interval == 60
    assert tasks.loss_scaling(job, "mixed_bfloat16") is None


@pytest.mark.filterwarnings("ignore:None of the last . training steps")
def test_a_skipped_step_that_moves_a_weight_is_counted():
    with keras_mp.policy_scope("mixed_float16"):
        layers = [keras.layers.Dense(4), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
    scaling = keras_mp.scaling.DynamicLossScale(2.0**40, max_scale=2.0**40)
    keras_mp.compile(model, "sgd", "mse", scaling=scaling)
    lockstep = worker.Lockstep(types.SimpleNamespace(recv=list, send=print))
    stats = keras_mp.callbacks.ScalerStats(frequency=1)

    class Moves(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model.layers[0].bias.assign_add([1.0])

    x = np.ones((8, 4), "float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[stats, lockstep])
    assert (lockstep.skipped, lockstep.changing) == (2, 0)
    model.fit(
        x, x[:, :1], batch_size=4, verbose=0, callbacks=[stats, Moves(), lockstep]
    )
    assert lockstep.changing == 2


@pytest.mark.parametrize(
    ("limit", "policy", "expected"),
    [
        ("AVX2", "mixed_bfloat16", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        ("AVX2", "float32", {}),
        ("DEFAULT", "mixed_bfloat16", {}),
    ],
)
def test_bfloat16_is_not_asked_of_a_onednn_that_may_not(
    monkeypatch, limit, policy, expected
):
    monkeypatch.setattr(hardware, "gpu_capabilities", lambda: [])
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert runner.variables_of(policy) == expected


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
    job = tasks.Job("custom", 5, 32, data=save_data(tmp_path / "d.npz"), **options)
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
    job = tasks.Job("custom", 5, 32, model=model, data=data, **options)
    with pytest.raises(terminal.UserError, match=expected):
        custom.build(job, "float32", custom.load_data(job))


def test_own_model_end_to_end_in_float16(files, capfd):
    options = ["--policy", "mixed_float16", "--epochs", "2", "--batch-size", "8"]
    assert cli.main(["train", *files, *options]) == 0
    output, errors = capfd.readouterr()
    assert "val accuracy" in output and errors == ""
    assert all(len(line) <= 100 for line in output.split("wrote")[0].splitlines())
    folder = pathlib.Path(files[-1])
    png = folder / "mine-mixed_float16.png"
    assert str(png) in output and png.read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "mine-mixed_float16.json").read_text())
    assert [row["policy"] for row in written["table"]] == ["float32", "mixed_float16"]
    assert written["table"][1]["final_scale"] == 2**17  # ten steps, grown after each 4
    assert "skipped no step; the scale grew 2 times" in output
    assert all(row["peak_memory_mib"] > 50 for row in written["table"])
    assert written["options"]["epochs"] == 2 and written["versions"]["keras"]
    for run in written["runs"].values():
        assert len(run["steps"]["loss"]) == 10 and len(run["epochs"]["loss"]) == 2
    starts = [run["steps"]["loss"][0] for run in written["runs"].values()]
    assert starts[0] == pytest.approx(starts[1], rel=0.02)  # the same weights, batch


def test_three_rows_by_default(files, capfd, monkeypatch):
    monkeypatch.setattr(hardware, "native_policies", lambda: ("mixed_bfloat16",))
    assert cli.main(["train", *files, "--epochs", "2", "--batch-size", "8"]) == 0
    output, errors = capfd.readouterr()
    assert errors == ""
    head, *rows = re.search(r" +val accuracy .*(\n\w+ .*){3}", output)[0].split("\n")
    assert re.split(r" {2,}", head.strip()) == [
        "val accuracy", "difference", "ms/step", "speed-up", "memory", "final scale",
        "growths", "skipped",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["float32", *hardware.MIXED_POLICIES]
    assert "x" in rows[1].split()[4] and rows[2].split()[4] == "emulated"
    assert (pathlib.Path(files[-1]) / "mine.png").exists()


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
    float32, mixed = written["runs"].values()
    job = tasks.Job("custom", 2, 8, model=files[1], data=files[3])
    (one,) = runner.compare(job, ["float32"], print)
    # Sums are in another order; float16 rounds at 2**-11.
    for run, tolerance in ((float32, 1e-5), (mixed, 0.01)):
        assert run["steps"]["loss"] == pytest.approx(one.series("losses"), tolerance)
        validation = run["epochs"]["validation"][-1]["loss"]
        expected = one.epochs[-1]["validation"]["loss"]
        assert validation == pytest.approx(expected, tolerance)


def test_what_a_child_refuses_is_told_without_a_traceback(tmp_path, files, capfd):
    save_model(tmp_path / "mine.keras", compiled=False)
    assert cli.main(["train", *files, *TWO_RUNS]) == 2
    errors = capfd.readouterr().err
    assert "add --loss" in errors and "Traceback" not in errors


def test_a_child_that_fails_shows_its_last_lines(files, capfd, monkeypatch):
    monkeypatch.setattr(worker, "main", operator.truediv)  # fails: three arguments
    assert cli.main(["train", *files, *TWO_RUNS]) == 1
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
        from keras_mp import cli, commands
        def show(line):
            print(line)
            if "model:" in line:
                (second,) = (
                    process for process in multiprocessing.active_children()
                    if process.name.endswith("-2")
                )
                second.kill()
        if __name__ == "__main__":
            commands.show = show
            sys.exit(cli.main(sys.argv[1:]))
    """
    options = [*TWO_RUNS, "--workers", workers]
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
        children.append(processes.Child(name, process, ours, str(tmp_path / name)))
    with pytest.raises(processes.ChildError, match="victim ended with exit code -6"):
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
    options = [*TWO_RUNS, "--epochs", "100000", "--workers", workers]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), "train", *files, *options],
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
    done = subprocess.run(
        [*command, "--output", str(tmp_path)],
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["table"]
    assert [row["policy"] for row in rows] == ["float32", *hardware.MIXED_POLICIES]
    assert all(good(row["validation"]) for row in rows)
    # The scale grew, overflowed and came back, with more than one step skipped.
    assert rows[2]["growths"] > rows[2]["steps_skipped"] > 1
    assert 2**15 < rows[2]["final_scale"] < 2**30
    assert "none of them changed a weight" in " ".join(done.stdout.split())
