"""Series out of pipes, and a compiled parser that is left early: it must not take the process down."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from memtoken_cli.data.series import read_series

TABLE = "t,a,b\n" + "".join(f"{i / 10},{i % 7},{-i}\n" for i in range(20_000))


def test_a_named_pipe_is_a_series_and_can_be_read_again(tmp_path: Path) -> None:
    pipe, plain = tmp_path / "pipe.csv", tmp_path / "plain.csv"
    os.mkfifo(pipe)
    plain.write_text(TABLE)
    writer = threading.Thread(target=pipe.write_text, args=(TABLE,))
    writer.start()
    series = read_series(pipe)
    writer.join()
    beside = read_series(plain)
    assert series.name == "pipe" and np.array_equal(series.values_TC, beside.values_TC)
    assert list(series.time_text()) == list(beside.time_text())


def test_a_parser_that_gives_up_at_once_leaves_the_process_in_order(tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.csv"
    faulty.write_text("# a logger's name\n# unit: g\n" + TABLE[: 1 << 15])
    command = [sys.executable, "-m", "memtoken_cli", "segment"]
    # the parser reads ahead in its own threads: whether one is at work when the process ends is chance
    for _ in range(2):
        for source in (str(faulty), "-"):
            with faulty.open() as stdin:
                ran = subprocess.run([*command, source], stdin=stdin, capture_output=True, text=True)
            assert ran.returncode == 3 and "is no number" in ran.stderr, (ran.returncode, ran.stderr)
