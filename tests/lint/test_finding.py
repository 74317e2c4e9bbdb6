"""A finding is printed as one line."""

from support.lint import dense, model_of

import keras_mp


def test_a_finding_is_one_line():
    findings = keras_mp.lint(model_of(dense(10, "softmax")), 100)
    assert findings
    for finding in findings:
        line = str(finding)
        assert "\n" not in line
        for part in finding:
            assert part in line
