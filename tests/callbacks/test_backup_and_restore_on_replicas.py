"""Training on two replicas, of one process or of two, goes on as if not stopped."""

import json
import os
import pathlib
import sys
import warnings

import pytest
from support.processes import run_alone, run_workers, strategy_here
from support.resumed import Stop, Stopped, arrays, made, trained

from keras_mp.callbacks import BackupAndRestore

pytestmark = pytest.mark.long


@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_it_goes_on(strategy, tmp_path):
    run = run_alone if strategy == "mirrored" else run_workers
    found = run(__file__, str(tmp_path))
    for each in [found] if strategy == "mirrored" else found:
        # Of two workers the second has lost the last backup.
        step = 2 if strategy == "mirrored" else 0
        assert each["same"] and each["restored"] == [1, step]
        assert each["other order"]["restored"] == [1, 2]
        assert "begins anew" in each["other order"]["warning"]
        assert each["no seed"].startswith("BackupAndRestore: the place in these data")


def on_replicas(folder):
    strategy = strategy_here()

    def make():
        return made(strategy=strategy)

    def stop_after(steps, data):
        with pytest.raises(Stopped):
            backups = BackupAndRestore(folder, every=2)
            trained(make(), data, [backups, Stop(steps)])

    straight = trained(make(), arrays())
    for steps in (5, 8):
        stop_after(steps, arrays())
    if "TF_CONFIG" in os.environ and strategy.cluster_resolver.task_id == 1:
        max((folder / "replica-1").glob("backup-*.npz")).unlink()
    last = BackupAndRestore(folder, every=2)
    found = trained(make(), arrays(), [last])
    return {
        "same": found == straight,
        "restored": last.restored,
        "other order": in_another_order(make, stop_after, folder),
        "no seed": without_a_seed(make, folder),
    }


def in_another_order(make, stop_after, folder):
    stop_after(11, arrays() | {"shuffle": False})
    last = BackupAndRestore(folder, every=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(make(), arrays(), [last], epochs=2)
    (found,) = (str(each.message) for each in caught if "epoch 1" in str(each.message))
    return {"restored": last.restored, "warning": found}


def without_a_seed(make, folder):
    from tensorflow.python.eager import context

    model = make()
    context.set_global_seed(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(model, arrays(), [BackupAndRestore(folder)], epochs=1)
    return next(str(each.message) for each in caught if "seed" in str(each.message))


if __name__ == "__main__":
    print(json.dumps(on_replicas(pathlib.Path(sys.argv[1]))))
