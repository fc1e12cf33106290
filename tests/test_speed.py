"""Command line of the speed benchmark: what it cannot measure is refused before it begins."""

import pytest

from experiments.benchmarks import ab, speed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["seeds", "--seeds", "0"], "train.num_seeds = 0: must be >= 1"),
        (["seeds", "--seeds", "1", "-3"], "train.num_seeds = -3: must be >= 1"),
        (["seeds", "--set", "train.num_seeds=8"], "train.num_seeds: seeds varies it itself"),
        (["capacity", "--set", "train.capacity=8"], "train.capacity: capacity varies it itself"),
        (["methods", "--suite=nope"], "--suite = 'nope': unknown"),
        (["startup", "--set", "train.seed=1"], "--set: startup has none; it is for efficiency"),
        (["efficiency", "--size=small", "--size=smal"], "size = 'smal': must be one of"),
        (["efficiency", "--set", "agent.mppi.horizn=2"], "did you mean"),
        (["efficiency", "--set", "agent.mppi.horizon={[]:1}"], "agent.mppi.horizon = '{[]:1}'"),
        (["efficiency", "--set", f"agent.mppi.horizon={'-' * 20_000}1"], "agent.mppi.horizon"),
        (["efficiency", "--set", "=3"], "--set: '=3': must be FIELD=VALUE"),
        (["efficiency", "--set", "agent.mppi.horizon"], "must be FIELD=VALUE"),
        (["efficiency", "--set", "env.num_envs=2"], "must be a field of agent"),
        (["efficiency", "--set", "agent.policy.interval=2"], "an update here trains everything"),
        (["efficiency", "--set", "agent.replan.interval=2"], "plans nothing again"),
        (["efficiency", "--json=/dev/null/x/rows.json"], "'/dev/null' is no folder"),
        (["efficiency", "--bogus"], "--bogus: unknown argument"),
        (["nope"], "invalid choice: 'nope'"),
    ],
)
def test_speed_refuses_in_one_line_what_it_cannot_measure(argv, words, capsys):
    try:
        code = speed.main(argv)
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert words in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--a"),
        (["--a=--config=x.py", "--b=--config=y.py", "--minutes=nan"], "--minutes = nan: must be"),
        (["--a=--config=x.py", "--b=--config=y.py", "--first=-1"], "--first = -1: must be above"),
        (["--a=--config='x.py"], '--a = "--config=\'x.py": no closing quotation'),
        (["--a=--config=x.py"], "--b: is the same as --a"),
        (["--a=x"], "--a = 'x': must have --config=FILE"),
    ],
)
def test_ab_refuses_in_one_line(argv, words, capsys, monkeypatch):
    monkeypatch.setattr(ab, "measure", lambda *_: pytest.fail("started"))
    try:
        code = ab.main(argv)
    except SystemExit as error:
        code = error.code
    err = capsys.readouterr().err
    assert code == 2 and words in err and err.startswith("error: ") and err.count("\n") == 1
