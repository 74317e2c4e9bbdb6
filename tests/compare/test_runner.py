"""Whole comparisons, in processes: what they print and write, and how they end."""

import contextlib
import itertools
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

import pytest
from support.own_files import save_data, save_model
from support.spawned import forked_instead

from keras_mp import cli, commands, hardware, processes
from keras_mp.compare import runner, tasks, worker

TIMEOUT = 240  # seconds, for runs that must not hang
# Two runs instead of three, where any number of them does.
TWO_RUNS = ["--policy", "mixed_bfloat16"]


@pytest.fixture
def forked():
    """Let the children of a comparison start without an import of TensorFlow.

    `test_interrupting_a_command_ends_its_children` starts them as users do.
    """
    with forked_instead():
        yield


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


@pytest.mark.long
def test_own_model_end_to_end(files, forked, capfd, monkeypatch):
    """In all three precisions, by default."""
    monkeypatch.setattr(hardware, "native_policies", lambda: ("mixed_bfloat16",))
    assert cli.main(["train", *files, "--epochs", "2", "--batch-size", "8"]) == 0
    output, errors = capfd.readouterr()
    assert errors == ""
    assert all(len(line) <= 100 for line in output.split("wrote")[0].splitlines())
    head, *rows = re.search(r" +val accuracy .*(\n\w+ .*){3}", output)[0].split("\n")
    assert re.split(r" {2,}", head.strip()) == [
        "val accuracy", "difference", "ms/step", "speed-up", "memory", "final scale",
        "growths", "skipped",
    ]  # fmt: skip
    policies = ["float32", *hardware.MIXED_POLICIES]
    assert [row.split()[0] for row in rows] == policies
    assert "x" in rows[1].split()[4] and rows[2].split()[4] == "emulated"
    folder = pathlib.Path(files[-1])
    png = folder / "mine.png"
    assert str(png) in output and png.read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "mine.json").read_text())
    assert [row["policy"] for row in written["table"]] == policies
    assert written["table"][2]["final_scale"] == 2**17  # ten steps, grown after each 4
    assert "skipped no step; the scale grew 2 times" in output
    assert all(row["peak_memory_mib"] > 50 for row in written["table"])
    assert written["options"]["epochs"] == 2 and written["versions"]["keras"]
    for run in written["runs"].values():
        assert len(run["steps"]["loss"]) == 10 and len(run["epochs"]["loss"]) == 2
    starts = [run["steps"]["loss"][0] for run in written["runs"].values()]
    assert starts == pytest.approx(starts[:1] * 3, rel=0.02)  # the same weights, batch


@pytest.mark.long
def test_replicas_on_logical_cpus(files, forked, capfd):
    options = ["--replicas", "2", "--policy", "mixed_float16"]
    sizes = ["--epochs", "1", "--batch-size", "9"]
    assert cli.main(["train", *files, *options, *sizes]) == 0
    output = capfd.readouterr().out
    assert "2 logical CPUs of" in output or "2 x" in output
    assert "batch size 8 instead of 9" in output


@pytest.mark.long
def test_workers_train_as_one_process_does(files, forked, capfd):
    options = ["--policy", "mixed_float16", "--epochs", "2", "--batch-size", "8"]
    assert cli.main(["train", *files, *options, "--workers", "2"]) == 0
    assert not multiprocessing.active_children()
    output, errors = capfd.readouterr()
    assert "2 processes on " in output and errors == ""
    path = pathlib.Path(files[-1], "mine-mixed_float16.json")
    written = json.loads(path.read_text())
    assert path.with_suffix(".png").exists() and written["options"]["workers"] == 2
    float32, mixed = written["runs"].values()
    job = tasks.Job("custom", 2, 8, model=files[1], data=files[3])
    (one,) = runner.compare(job, ["float32"], print)
    # Sums are in another order; float16 rounds at 2**-11.
    for run, tolerance in ((float32, 1e-5), (mixed, 0.01)):
        assert run["steps"]["loss"] == pytest.approx(one.series("losses"), tolerance)
        validation = run["epochs"]["validation"][-1]["loss"]
        expected = one.epochs[-1]["validation"]["loss"]
        assert validation == pytest.approx(expected, tolerance)


@pytest.mark.long
def test_what_a_child_refuses_is_told_without_a_traceback(
    tmp_path, files, forked, capfd
):
    save_model(tmp_path / "mine.keras", compiled=False)
    assert cli.main(["train", *files, *TWO_RUNS]) == 2
    errors = capfd.readouterr().err
    assert "add --loss" in errors and "Traceback" not in errors


@pytest.mark.long
def test_a_child_that_fails_shows_its_last_lines(files, forked, capfd, monkeypatch):
    monkeypatch.setattr(worker, "main", operator.truediv)  # fails: three arguments
    assert cli.main(["train", *files, *TWO_RUNS]) == 1
    errors = capfd.readouterr().err
    assert "the float32 run ended with exit code 1" in errors
    assert "| TypeError: truediv expected 2 arguments" in errors
    assert not multiprocessing.active_children()


def children():
    """Return the processes that there are, in the order of their start."""
    return sorted(
        multiprocessing.active_children(),
        key=lambda process: int(process.name.rpartition("-")[2]),
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "workers, name",
    [("1", "the mixed_bfloat16 run"), ("2", "worker 1 of the float32 run")],
)
def test_a_killed_child_does_not_hang(files, forked, capfd, monkeypatch, workers, name):
    """SIGKILL in the middle, as by the system when memory runs out."""

    def show(line):
        if "model:" in line:
            children()[1].kill()

    monkeypatch.setattr(commands, "show", show)
    assert cli.main(["train", *files, *TWO_RUNS, "--workers", workers]) == 1
    ended = f"{name} ended with exit code -9 (killed: probably out of memory)"
    assert ended in capfd.readouterr().err
    assert not multiprocessing.active_children()


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


@pytest.mark.long
def test_interrupting_two_workers_ends_them(files, forked, capfd, monkeypatch):
    go = runner.Team.go

    def go_and_interrupt(team):
        """Do as Ctrl-C while they train, which reaches every process of a group."""
        go(team)
        for process in [*children(), multiprocessing.current_process()]:
            os.kill(process.pid, signal.SIGINT)

    monkeypatch.setattr(runner.Team, "go", go_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = cli.main(["train", *files, *TWO_RUNS, "--workers", "2"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    errors = capfd.readouterr().err
    assert "interrupted" in errors and "Traceback" not in errors
    assert not multiprocessing.active_children()


@pytest.mark.long
def test_interrupting_a_command_ends_its_children(files):
    script = """
        import signal, sys
        from keras_mp import cli
        if __name__ == "__main__":
            # Whoever started the tests in the background had it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.exit(cli.main(sys.argv[1:]))
    """
    options = [*TWO_RUNS, "--epochs", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), "train", *files, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # Until the first epoch is over; `train` prints 20 lines before it at most.
        first_lines = itertools.islice(process.stdout, 30)
        assert any(re.match(" +1 ", line) for line in first_lines)
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
