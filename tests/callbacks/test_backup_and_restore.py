"""Training that was stopped anywhere goes on as if it had not been."""

import datetime

import keras
import pytest
import tensorflow as tf
from support.damage import Outcome
from support.resumed import BATCH, Stop, Stopped, X, Y, arrays, made, trained

import keras_mp
from keras_mp.callbacks import BackupAndRestore
from keras_mp.resuming import iterators


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return X[rows], Y[rows]


def pipeline():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def noisy(x, y):
    return x + tf.random.uniform([]), y


def through_python(x, y):
    x = tf.numpy_function(lambda each: each, [x], tf.float32)
    return tf.ensure_shape(x, [None, 4]), y


def generated():
    while True:
        for index in range(6):
            yield Batches()[index]


DATA = {
    "arrays": arrays,
    "shuffled batches": lambda: arrays() | {"shuffle": "batch"},
    "pipeline": lambda: {"x": pipeline().shuffle(30).batch(BATCH).prefetch(2)},
    "all in the buffer": lambda: {"x": pipeline().shuffle(99).batch(BATCH)},
    "repeated": lambda: (
        {"x": pipeline().shuffle(30).repeat().batch(BATCH)} | {"steps_per_epoch": 5}
    ),
    "python": lambda: {"x": pipeline().shuffle(30).batch(BATCH).map(through_python)},
    "random": lambda: {"x": pipeline().shuffle(30).batch(BATCH).map(noisy)},
    "unknown length": lambda: {
        "x": pipeline().filter(lambda x, y: x[0] > -9).shuffle(9).batch(BATCH)
    },
    "PyDataset": lambda: {"x": Batches(), "shuffle": True},
    "PyDataset in threads": lambda: {"x": Batches(workers=2), "shuffle": True},
    "generator": lambda: {"x": generated(), "steps_per_epoch": 6},
}


@pytest.fixture(scope="module")
def straight():
    """What a run leaves that is not stopped."""
    return trained(made(), arrays())


def gone_on(make, data, folder, stops, **options):
    """Train, stop after so many batches each time, and go on to the end."""
    for after in stops:
        with pytest.raises(Stopped):
            trained(make(), data(), [BackupAndRestore(folder, **options), Stop(after)])
    last = BackupAndRestore(folder, **options)
    return trained(make(), data(), [last]), last


# What CI has time for: one kind for each way in which a place is found again.
SHORT = ("all in the buffer", "repeated", "python", "PyDataset in threads")


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(data, id=kind, marks=() if kind in SHORT else pytest.mark.slow)
        for kind, data in DATA.items()
    ],
)
def test_data(data, tmp_path, check_faults):
    straight, stops = trained(made(), data()), [5, 6]
    found, last = gone_on(made, data, tmp_path, stops, every=2)
    assert last.restored is not None
    same = found == straight
    lost = () if same else ("other weights, or another History",)
    outcome = Outcome(len(stops), len(stops) * same, lost)
    check_faults("`fit` that ends by an exception in the middle of an epoch", outcome)


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize(
    "every", ["epoch", 3, datetime.timedelta(microseconds=1)], ids=str
)
def test_every(every, tmp_path, straight):
    found, last = gone_on(made, arrays, tmp_path, [11, 9], every=every)
    assert last.restored == (2, 0) if every == "epoch" else last.restored > (1, 0)
    assert found == straight


@pytest.mark.long
def test_several_steps_in_an_execution(tmp_path):
    def make():
        return made(steps_per_execution=3)

    straight = trained(make(), arrays())
    found, last = gone_on(make, arrays, tmp_path, [5], every=1)
    assert last.restored == (1, 3)
    assert found == straight


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("policy", ["mixed_float16", "float32"])
def test_policies_and_validation(policy, tmp_path):
    def make():
        return made(policy, "adam")

    def data():
        return arrays() | {"validation_data": (X[:9], Y[:9])}

    straight = trained(make(), data())
    found, _ = gone_on(make, data, tmp_path, [10, 4], every=2)
    assert found == straight and "val_loss" in found[1]


@pytest.mark.long
def test_a_model_that_is_not_built(tmp_path):
    def make():
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(2)])
        keras_mp.compile(model, "adam", "mse", metrics=["mae"])
        return model

    straight = trained(make(), arrays())
    found, last = gone_on(make, arrays, tmp_path, [6], every=2)
    assert last.restored == (0, 4)
    assert found == straight


@pytest.mark.long
def test_it_changes_nothing(tmp_path, straight):
    """Neither what is trained, nor anything that is left behind."""
    folder = tmp_path / "backups"
    assert trained(made(), arrays(), [BackupAndRestore(folder, every=1)]) == straight
    assert not folder.exists()


@pytest.mark.long
def test_a_second_fit_begins_with_its_own_epoch(tmp_path):
    def make():
        return made(optimizer="adam")

    _, last = gone_on(make, arrays, tmp_path, [12], every=2)
    again = last.model.fit(**arrays(), epochs=1, verbose=0)
    assert again.epoch == [0]


@pytest.mark.long
def test_backups_that_stay(tmp_path):
    kept = {"every": 2, "keep": 3, "delete_checkpoint": False}
    straight = trained(made(), arrays(), [BackupAndRestore(tmp_path, **kept)])
    assert len(list(tmp_path.glob("backup-*.npz"))) == 3
    done = BackupAndRestore(tmp_path, **kept)
    assert trained(made(), arrays(), [done]) == straight
    assert done.restored == (3, 0)
    more = BackupAndRestore(tmp_path, **kept)
    assert trained(made(), arrays(), [more], epochs=4)[2] == [0, 1, 2, 3]


# Files.


def stopped_with_backups(folder, **options):
    with pytest.raises(Stopped):
        backup = BackupAndRestore(folder, every=2, **options)
        trained(made(), arrays(), [backup, Stop(7)])
    return sorted(folder.glob("backup-*.npz"))


@pytest.mark.long
def test_a_damaged_backup_is_passed_over(tmp_path, straight):
    *_, newest = stopped_with_backups(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-50])
    last = BackupAndRestore(tmp_path, every=2)
    with pytest.warns(UserWarning, match=f"{newest.name} cannot be used .* before it"):
        assert trained(made(), arrays(), [last]) == straight
    assert last.restored == (0, 4)


@pytest.mark.long
def test_only_damaged_backups(tmp_path, straight):
    for file in stopped_with_backups(tmp_path):
        file.write_bytes(b"")
    last = BackupAndRestore(tmp_path, every=2)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert trained(made(), arrays(), [last]) == straight
    assert last.restored is None


@pytest.mark.long
def test_what_a_killed_process_left_is_removed(tmp_path):
    stopped_with_backups(tmp_path)
    left = tmp_path / ".backup-00000099.npz.tmp"
    left.write_bytes(b"half")
    trained(made(), arrays(), [BackupAndRestore(tmp_path, delete_checkpoint=False)])
    assert not left.exists()


@pytest.mark.long
def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, straight):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match="could not write a backup to .* No space"):
        found = trained(made(), arrays(), [BackupAndRestore(tmp_path / "f", every=9)])
    assert found == straight


@pytest.mark.long
def test_backups_of_another_model(tmp_path):
    stopped_with_backups(tmp_path)
    other = made(optimizer="momentum")
    before = [each.numpy().tolist() for each in other.weights]
    with pytest.raises(ValueError, match="needs the model of its backups. .* remove"):
        trained(other, arrays(), [BackupAndRestore(tmp_path)])
    assert [each.numpy().tolist() for each in other.weights] == before


# Data that are not what they were.


@pytest.mark.long
def test_other_data_begin_the_epoch_anew(tmp_path):
    """Here because the program does not shuffle any more."""
    with pytest.raises(Stopped):
        trained(
            made(),
            {"x": Batches(), "shuffle": True},
            [BackupAndRestore(tmp_path, every=2), Stop(12)],
        )
    seen = []

    class Seen(Batches):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    last = BackupAndRestore(tmp_path, every=2)
    with pytest.warns(UserWarning, match="data of epoch 1 are not .* begins anew. Sh"):
        found = trained(made(), {"x": Seen(), "shuffle": False}, [last], epochs=2)
    assert last.restored == (1, 3)
    # The first two for their shapes, three to find the place, and the whole epoch.
    assert seen[-7:] == list(range(7))
    # Of which the model has learned from seven batches more than at its beginning.
    assert found[2] == [0, 1]


# Arguments.


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"backup_dir": ""}, ValueError, "needs a folder"),
        ({"every": 0}, ValueError, "every=0.* 1 or more"),
        ({"every": 2.5}, TypeError, "Got a float"),
        ({"every": "step"}, ValueError, "'epoch', a number of steps or"),
        ({"every": datetime.timedelta(0)}, ValueError, "a time above 0"),
        ({"keep": 0}, ValueError, "keep=0"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        BackupAndRestore(**{"backup_dir": "backups", **arguments})


def test_a_fit_of_the_models_own(tmp_path):
    class Own(keras.Model):
        def fit(self, callbacks):
            keras.callbacks.CallbackList(callbacks, model=self).on_train_begin()

    with pytest.raises(TypeError, match="Call .*fit` in it"):
        Own().fit([BackupAndRestore(tmp_path)])


@pytest.mark.internals
def test_the_iterator_is_saved_once_for_each_step(tmp_path, monkeypatch):
    saved, calls = iterators.saved, []

    def counted(iterator):
        calls.append(iterator)
        return saved(iterator)

    monkeypatch.setattr(iterators, "saved", counted)
    trained(made(), arrays(), [BackupAndRestore(tmp_path)], epochs=3)
    # Whether it can be saved, and the beginning of each epoch.
    assert len(calls) == 1 + 3
