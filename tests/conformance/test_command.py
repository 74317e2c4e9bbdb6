"""``python -m conformance``: what it prints, and when it fails."""

import pytest

from conformance import __main__ as command


def test_conformance_fails_if_a_case_does(capsys, monkeypatch):
    options = ["--name", "^Flatten$", "--policy", "mixed_float16"]
    assert command.main(options) == 0
    assert "| Flatten |" in capsys.readouterr().out
    new = ["keras.layers.New"]
    monkeypatch.setattr(command.discover, "untested", lambda cases: new)
    assert command.main(options) == 1
    assert "without a case: keras.layers.New" in capsys.readouterr().out


def test_conformance_refuses_a_name_that_is_none(capsys):
    assert command.main(["--name", "NoSuchLayer"]) == 2
    assert "it needs:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--name", "("])
    assert "--name" in capsys.readouterr().err
