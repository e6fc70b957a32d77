"""Progress of an export on stderr, with a clock that the test controls."""

import sys

from koe5_export.cli.stages import Lines, duration, progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_at_start_and_end_of_a_stage_and_every_20_seconds(capsys):
    clock = Clock()
    report = Lines(clock)
    for now, done in ((0, 0), (1, 100), (25, 2500), (26, 2600), (46, 5000), (100, 10_000)):
        clock.now = now
        report("reference", done, 10_000)
    assert capsys.readouterr().err.splitlines() == [
        "PyTorch reference: 10,000 tokens",
        "PyTorch reference: 2,500 of 10,000 tokens, about 1 min 15 s left",
        "PyTorch reference: 5,000 of 10,000 tokens, about 46 s left",
        "PyTorch reference: done in 1 min 40 s",
    ]


def test_each_stage_has_its_own_time(capsys):
    clock = Clock()
    report = Lines(clock)
    for now, stage, done, total in (
        (0, "import", 0, 1),
        (3, "import", 1, 1),
        (5, "hash", 0, 560_000_000),
        (6, "hash", 560_000_000, 560_000_000),
    ):
        clock.now = now
        report(stage, done, total)
    assert capsys.readouterr().err.splitlines() == [
        "converting the graph ...",
        "converting the graph: done in 3 s",
        "hashing checkpoint and artifact: 560.0 MB",
        "hashing checkpoint and artifact: done in 1 s",
    ]


def test_a_terminal_gets_a_bar_per_stage(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress() as report:
        for stage, total in (("reference", 10), ("calibrate", 2), ("import", 1)):
            for done in range(total + 1):
                report(stage, done, total)
    drawn = capsys.readouterr().err
    for words in (
        "PyTorch reference: 100%",
        "calibrating and writing layers: 100%",
        "converting the graph: 100%",
    ):
        assert words in drawn


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 125)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
    ]
