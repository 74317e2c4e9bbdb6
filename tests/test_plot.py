"""Pictures: what they show, whatever the model did, and what they refuse."""

import sys

import keras
import matplotlib
import numpy as np
import pytest
from keras import layers
from matplotlib.figure import Figure

import keras_mp
from keras_mp import plot

X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")


def diagnosis_of(factor=1.0, policy="mixed_float16"):
    keras.utils.set_random_seed(0)
    block = [layers.Dense(8, name=name) for name in ("first", "second")]
    block = keras.Sequential([keras.Input((8,)), *block], name="block")
    head = layers.Dense(1, name="head")
    model = keras.Sequential([keras.Input((8,)), block, head], name="net")
    keras_mp.compile(model, "sgd", "mse", policy=policy)
    kernel = block.layers[0].kernel
    kernel.assign(kernel * factor)
    return keras_mp.diagnose(model, X, X[:, :1], scale=8.0)


@pytest.fixture(scope="module")
def clean():
    return diagnosis_of()


@pytest.fixture(scope="module")
def failing():
    return diagnosis_of(1e6)


def names_in(figure):
    """Return the names of the rows, as they are written."""
    return [
        label.get_text()
        for axes in figure.axes
        for label in axes.get_yticklabels()
        if label.get_family() == ["monospace"]
    ]


def crosses_in(axes):
    return [
        y for line in axes.lines if line.get_marker() == "x" for y in line.get_ydata()
    ]


DRAWN = [plot.ranges, plot.errors, plot.histograms]


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)
def test_a_row_for_each_layer_and_an_arrow_for_each_culprit(draw, clean, failing):
    tree = ["net", "  block", "    first", "    second", "  head"]
    assert names_in(draw(clean)) == [f"  {name}" for name in tree]
    tree[2] = f"→ {tree[2]}"
    expected = [tree[2] if "first" in name else f"  {name}" for name in tree]
    assert names_in(draw(failing)) == expected


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)
def test_a_cross_for_numbers_that_are_not_finite(draw, clean, failing):
    assert not any(crosses_in(axes) for axes in draw(clean).axes)
    outputs = next(filter(crosses_in, draw(failing).axes))
    assert crosses_in(outputs) == [0, 1, 2, 3, 4]


def test_ranges_are_from_the_smallest_to_the_largest_number(clean):
    axes = plot.ranges(clean).axes[2]  # below the formats, on the left
    for bar, layer in zip(axes.patches, clean.layers, strict=True):
        ends = [bar.get_x(), bar.get_x() + bar.get_width()]
        measures = layer.output
        expected = np.log2([measures.smallest, measures.largest])
        np.testing.assert_allclose(ends, expected, rtol=1e-6)


def test_errors_are_those_of_the_layers(clean):
    forward, backward = plot.errors(clean).axes
    for axes, name in ((forward, "output_error"), (backward, "gradient_error")):
        (points,) = [line for line in axes.lines if line.get_marker() == "o"]
        found = [getattr(layer, name).relative for layer in clean.layers]
        assert list(points.get_xdata()) == [error for error in found if error]


def test_histograms_of_some_layers(clean):
    figure = plot.histograms(clean, ["net/block/second", "net/head"])
    assert names_in(figure) == ["  net/block/second", "  net/head"]
    (image,) = figure.axes[3].images
    row = image.get_array()[0].filled(0.0)
    exponents = range(round(image.get_extent()[0] + 0.5), 100)
    counts = clean.layers[3].output.exponents
    expected = {n: count / max(counts.values()) for n, count in counts.items()}
    found = {n: share for n, share in zip(exponents, row, strict=False) if share}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("paths", [["net/nowhere"], []])
def test_layers_that_there_are_not(clean, paths):
    with pytest.raises(ValueError, match="net/block/second"):
        plot.histograms(clean, paths)


def test_a_model_in_float32_has_no_errors_but_ranges():
    diagnosis = diagnosis_of(policy="float32")
    assert len(names_in(diagnosis.plot())) == 5
    with pytest.raises(ValueError, match="in low precision"):
        plot.errors(diagnosis)


# The loss scale.


def series(figure):
    """Return the steps, the scales, and the steps that are crossed out, as lists."""
    line, *crosses = figure.axes[0].lines
    crossed = [list(zip(*each.get_data(), strict=True)) for each in crosses]
    return list(line.get_xdata()), list(line.get_ydata()), sum(crossed, [])


def trained(frequency):
    block = [layers.Dense(8), layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,)), *block])
    rule = keras_mp.scaling.DynamicLossScale(growth_interval=2, max_scale=2.0**16)
    keras_mp.compile(model, "sgd", "mse", policy="mixed_float16", scaling=rule)
    x = X.copy()
    x[4:8] = 6e4  # the second of four batches
    stats = keras_mp.callbacks.ScalerStats(frequency)
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0, "callbacks": [stats]}
    return stats, model.fit(x, X[:, :1], **fit)


@pytest.mark.filterwarnings("ignore:.*reads it in")
def test_each_reading_of_a_callback():
    steps, scales, crossed = series(plot.scale(trained(1)[0]))
    assert steps == [1, 2, 3, 4]
    assert scales == [2.0**15, 2.0**14, 2.0**14, 2.0**15]
    assert crossed == [(2, 2.0**15)]


def test_a_long_run_keeps_what_changed():
    stats = keras_mp.callbacks.ScalerStats(1)
    for step in range(1, 100):
        scale = 8.0 if step < 50 else 16.0
        stats._keep({"steps": step, "scale": scale, "skipped": 0})
    assert series(plot.scale(stats)) == ([1, 49, 50, 99], [8.0, 8.0, 16.0, 16.0], [])


@pytest.mark.filterwarnings("ignore:.*reads it in")
def test_each_epoch_of_a_history():
    _, history = trained("epoch")
    for each in (history, history.history):
        assert series(plot.scale(each)) == ([4], [2.0**15], [(4, 2.0**15)])


def test_lists():
    stats = [
        {"steps": 10, "scale": 8.0, "skipped": 0},
        {"steps": 20, "scale": 4.0, "skipped": 1},
    ]
    assert series(plot.scale(stats)) == ([10, 20], [8.0, 4.0], [(20, 8.0)])
    assert series(plot.scale([8.0, 4.0, 8.0])) == ([1, 2, 3], [8, 4, 8], [(2, 8.0)])


@pytest.mark.parametrize(
    "run, error, expected",
    [
        ({"loss": [1.0]}, ValueError, "ScalerStats"),
        ([], ValueError, "empty list"),
        (3.0, TypeError, "Got a float"),
    ],
)
def test_what_holds_no_scale(run, error, expected):
    with pytest.raises(error, match=expected):
        plot.scale(run)


# All of them.


@pytest.mark.long
def test_files_and_notebooks_and_the_backend(tmp_path, clean):
    backend = matplotlib.rcParams._get_backend_or_none()
    figures = [
        clean.plot(tmp_path / "a.png"),
        plot.errors(clean, tmp_path / "b.svg"),
        plot.histograms(clean, path=tmp_path / "c.pdf"),
        plot.scale([8.0, 4.0], tmp_path / "d.png"),
    ]
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]
    for figure in figures:
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert matplotlib.rcParams._get_backend_or_none() == backend


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_mp.plot.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot.scale([8.0])
