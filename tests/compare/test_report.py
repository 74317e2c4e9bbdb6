"""Rows, the table, the sentences, JSON and the picture of a comparison."""

import json
import re

import pytest

from keras_mp.compare import picture, report, runner, tasks, worker


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


def test_a_run_without_a_scale_tells_what_it_skipped():
    assert "mixed_bfloat16 skipped" not in " ".join(report.sentences(comparison(RUNS)))
    skips = make_run("mixed_bfloat16", [None, 1.0, 1.0, 1.0], skips=[0])
    told = " ".join(report.sentences(comparison([RUNS[0], skips])))
    assert "mixed_bfloat16 skipped 1 of 4 steps, whose gradients were not fin" in told
    assert "the scale grew" not in told


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
