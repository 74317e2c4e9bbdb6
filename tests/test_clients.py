"""Models of packages written for Keras 3 train under keras_mp, are saved and loaded.

What they gave is written in ``docs/clients.json`` (see `clients` for how), which ours
must still give.
"""

import pytest
from clients import client, render, table, trial

RECORD = render.read()

# One of each kind, for a quick look where the packages are installed.
SHORT = {
    "Bert": "float16, set_policy",
    "GPT2, LoRA": "float16, convert",
    "Mixtral": "bfloat16, set_policy",
    "ViT": "bfloat16, convert",
    "RandomSearch": "float16, set_policy",
}

WAYS = {way.title: way for way in client.OURS}


def check(name, title):
    entry = RECORD["clients"][name]
    try:
        found = table.find(entry["module"], name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}: pip install 'keras_mp[clients]'")
    outcomes = trial.run(found, WAYS[title]).outcomes
    expected = entry["ways"][title]["outcomes"]
    assert {**outcomes} == expected, f"Run `{render.COMMAND}`"


@pytest.mark.parametrize("name", SHORT)
def test_client(name):
    check(name, SHORT[name])


@pytest.mark.clients
@pytest.mark.parametrize(
    "name, title", [(name, title) for name in RECORD["clients"] for title in WAYS]
)
def test_every_client(name, title):
    check(name, title)


@pytest.mark.parametrize("name", RECORD["clients"])
def test_what_trains_in_float32_trains(name):
    entry = RECORD["clients"][name]
    failed = {check for title in WAYS for check in render.failed(entry, title)}
    assert failed == set(entry["faults"])


@pytest.mark.clients
@pytest.mark.parametrize("module", table.PACKAGES)
def test_the_record_has_every_client(module):
    pytest.importorskip(f"clients.{module}")
    recorded = [
        name for name, entry in RECORD["clients"].items() if entry["module"] == module
    ]
    assert recorded == [each.name for each in table.clients(module)]


def test_the_page_shows_the_record():
    assert render.PAGE.read_text() == render.page(RECORD)
