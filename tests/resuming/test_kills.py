"""Processes killed at every write, and at random, end with the weights of one that ran.

Each is killed by SIGKILL, as by a machine that takes a job away, and started again.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import sys

import numpy as np
import pytest
from support import kills
from support.damage import Outcome
from support.processes import Forked, deadline, run_alone

TRAINING = "`kill -9` of a training, at random times and at writes, up to 20 in a row"


@pytest.fixture(scope="module")
def straight():
    return run_alone(__file__, "train")


def survive(folder, ways, straight):
    """Start a process for each way to kill it, then one that runs to the end.

    Returns:
        An `Outcome` of the kills, of which none is lost if the last process left what
        ``straight`` is.
    """
    killed = 0
    for way in ways:
        process = Forked(__file__, "train", str(folder), json.dumps(way))
        with contextlib.closing(process), deadline(120, process):
            process.wait()
            killed += process.returncode == -signal.SIGKILL
            assert process.returncode in (-signal.SIGKILL, 0), process.errors()[-2000:]
    same = run_alone(__file__, "train", str(folder)) == straight
    return Outcome(killed, killed * same, () if same else ("other weights",))


@pytest.mark.long
def test_killed_in_the_middle_of_writes(straight, tmp_path, check_faults):
    ways = [{"write": number} for number in (3, 250, 431)]
    found = survive(tmp_path, ways, straight)
    assert found.injected == 3
    check_faults(TRAINING, found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_twenty_times_in_a_row(seed, straight, tmp_path, check_faults):
    draw = random.Random(seed)
    ways = [
        {"write": draw.randrange(1, 600)}
        if draw.random() < 0.5
        else {"seconds": draw.uniform(0.5, 4)}
        for _ in range(20)
    ]
    found = survive(tmp_path, ways, straight)
    assert found.injected >= 10
    check_faults(TRAINING, found)


@pytest.mark.long
def test_killed_at_every_write_of_a_backup(tmp_path, check_faults):
    """One backup after another: the last whole one, or the new one, can be read."""
    found = Outcome(*run_alone(__file__, "every write", str(tmp_path)))
    assert found.injected > 20
    check_faults("`kill -9` at each write of a backup", found)


def train(folder=None, way="{}"):
    from support.resumed import arrays, made, trained

    from keras_mp.callbacks import BackupAndRestore

    way = json.loads(way)
    if "write" in way:
        kills.at_write(way["write"])
    if "seconds" in way:
        kills.after(way["seconds"])
    callbacks = [BackupAndRestore(folder, every=2)] if folder else []
    return trained(made(), arrays(), callbacks)


def write_killed_at_every_write(path):
    """Write a second backup in a process for each write of it, which kills it there."""
    from keras_mp.resuming.backup import Backup
    from keras_mp.resuming.batches import Place
    from keras_mp.resuming.folder import Folder

    place = Place(0, 0, 0, {}, None, None, None)
    old, new = (
        Backup({"a": [np.full(3, each)], "b": [np.zeros(9)]}, place, {}, [])
        for each in (1, 2)
    )
    lost = []
    for number in itertools.count(1):
        folder = Folder(path / str(number), keep=1)
        folder.write(1, old)
        child = os.fork()
        if child == 0:
            kills.at_write(number)
            folder.write(2, new)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        serial, taken = folder.newest()
        if taken.state["a"][0].tolist() != [serial] * 3:
            lost.append(number)
        if status == 0:
            return number - 1, number - 1 - len(lost), lost


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "train":
        print(json.dumps(train(*arguments)))
    else:
        print(json.dumps(write_killed_at_every_write(pathlib.Path(*arguments))))
