"""Strategies, and the processes that have them.

Collective keys leak from one strategy to the next within a process, so each process
makes one strategy; and a wrong collective hangs, so each process is watched from
outside.
"""

import contextlib
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import runpy
import sys
import tempfile
import threading
import traceback
import warnings

from keras_mp.processes import free_addresses

from . import quick
from .cells import STRATEGIES


class Forked:
    """A Python program in a process that starts with TensorFlow imported.

    It is forked from a process that has imported TensorFlow and not used it yet, which
    saves each program the seconds that the import takes.

    Args:
        program: Path of a file, or name of a module, that is run as ``__main__``.
        *arguments: Its command line.
        environment: Variables of its environment, beside those of this process.
    """

    def __init__(self, program, *arguments, environment=()):
        reader, writer = SERVER.Pipe(duplex=False)
        self._errors = tempfile.NamedTemporaryFile("r", errors="replace")
        self._process = SERVER.Process(
            target=_run,
            args=(program, arguments, dict(environment), writer, self._errors.name),
            daemon=True,
        )
        with _LOCK:
            self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def returncode(self):
        """Its exit status, the negative of a signal that ended it, or None so far."""
        with _LOCK:
            return self._process.exitcode

    def errors(self):
        """Return what it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def wait(self):
        """Wait for its end."""
        multiprocessing.connection.wait([self._process.sentinel])

    def send_signal(self, number):
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self):
        """End it at once, if it still runs."""
        self._process.kill()

    def close(self):
        """End it, and let go of its files."""
        self.kill()
        self.wait()
        self.stdout.close()
        self._errors.close()


#: What forks all processes of tests, with TensorFlow imported and not used yet.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["keras_mp"])
# An exit status can be read once, and whoever starts a process reads those of all.
_LOCK = threading.Lock()


def _run(program, arguments, environment, stdout, stderr):
    """Run ``program`` in this process, and end it."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    warnings.simplefilter("ignore")
    quick.save_time()
    status = 0
    try:
        run = runpy.run_path if os.path.isabs(program) else runpy.run_module
        run(program, run_name="__main__")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own way out takes apart all graphs, for up to half a minute.
    os._exit(status)


def run_alone(file, *arguments):
    """Run ``file`` in a process and return what it printed last, as JSON.

    Raises:
        AssertionError: It failed, or was ended because it took far longer than the
            half minute that it should on two cores; a deadlock takes for ever.
    """
    with contextlib.closing(Forked(file, *arguments)) as process:
        with deadline(600, process):
            output = process.stdout.read()
            process.wait()
        assert process.returncode == 0, process.errors()[-4000:]
        return json.loads(output.splitlines()[-1])


#: Seconds; a run on two workers takes up to 30 on busy cores, on slow ones it took more
#: than 150, and a deadlock takes for ever.
TIMEOUT = 400


def run_workers(file, *arguments):
    """Run ``file`` in a process for each of two workers; return what each printed last.

    Raises:
        AssertionError: As for `run_alone`.
    """
    with workers(file, *arguments) as processes:
        outputs = [process.stdout.read() for process in processes]
        for process in processes:
            process.wait()
            assert process.returncode == 0, process.errors()[-4000:]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@contextlib.contextmanager
def workers(file, *arguments):
    """Start a process for each of two workers; none is left after `TIMEOUT`."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                contextlib.closing(Forked(file, *arguments, environment=each))
            )
            for each in environments("multi-worker-2")
        ]
        stack.enter_context(deadline(TIMEOUT, *processes))
        yield processes


@functools.cache
def on_two_replicas(strategy, file):
    """Return what each process of ``file`` printed last, as a list; it runs once.

    Args:
        strategy: ``"mirrored"``, for one process, or ``"multi-worker"``, for two.
        file: The path of a file that trains under `strategy_here`.
    """
    return [run_alone(file)] if strategy == "mirrored" else run_workers(file)


def strategy_here(replicas=2):
    """Return the strategy of this process: of a worker, or of so many replicas."""
    import tensorflow as tf

    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return mirrored(replicas)


@contextlib.contextmanager
def deadline(seconds, *processes):
    """End the processes if they take longer."""
    timers = [threading.Timer(seconds, process.kill) for process in processes]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def environments(strategy):
    """Return the environment of each process that ``strategy`` needs."""
    processes = STRATEGIES[strategy].processes
    if processes == 1:
        return [{}]
    workers = free_addresses(processes)
    return [
        {"TF_CONFIG": json.dumps(_cluster(workers, index))}
        for index in range(processes)
    ]


def make_strategy(name):
    """Return the strategy called ``name``; the first use of TensorFlow in a process."""
    import tensorflow as tf

    devices = STRATEGIES[name].devices
    if name.startswith("mirrored"):
        return mirrored(devices)
    if name.startswith("multi-worker"):
        split_cpu(devices)
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def mirrored(replicas):
    """Return a MirroredStrategy on ``replicas`` logical CPUs."""
    import tensorflow as tf

    split_cpu(replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def split_cpu(parts):
    """Make ``parts`` logical devices of the CPU, before TensorFlow uses it."""
    import tensorflow as tf

    _look_often_for_threads()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * parts
    )


def _look_often_for_threads():
    """Have TensorFlow look every 10 ms whether the threads of replicas have ended.

    TensorFlow 2.21 looks once a second. On Python 3.13 a thread is still alive when it
    says that its work is done, so that every other ``strategy.run`` takes a second.
    """
    from tensorflow.python.training import coordinator

    wait = coordinator.Coordinator.wait_for_stop

    def wait_briefly(self, timeout=None):
        return wait(self, timeout and min(timeout, 0.01))

    coordinator.Coordinator.wait_for_stop = wait_briefly


def _cluster(workers, index):
    return {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
    }
