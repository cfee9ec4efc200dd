"""What a user reads when something is wrong."""

import errno

import pytest

from memtoken_cli.io.errors import (
    DataError,
    Full,
    Locked,
    MemtokError,
    PartialFailure,
    Problems,
    UsageError,
    from_os_error,
    nearest,
)


def test_the_exit_codes_are_the_documented_ones() -> None:
    codes = [c.exit_code for c in (MemtokError, UsageError, DataError, PartialFailure, Locked, Full)]
    assert codes == [1, 2, 3, 4, 75, 75]


def test_an_error_says_what_where_and_what_to_type() -> None:
    error = UsageError("unknown key lrr", hint="did you mean lr?", where="r.yaml:3")
    assert error.lines() == ["error: unknown key lrr in r.yaml:3", "hint: did you mean lr?"]
    assert MemtokError("no more").lines() == ["error: no more"]


def test_no_problem_raises_nothing() -> None:
    Problems().raise_any()


def test_one_problem_is_raised_as_it_is() -> None:
    problems = Problems()
    problems.add(DataError("bad", where="f:1"))
    with pytest.raises(DataError) as caught:
        problems.raise_any()
    assert caught.value.problems == ()


def test_several_problems_are_one_error_of_the_first_class() -> None:
    problems = Problems()
    problems.add(UsageError("first", where="f:1"))
    problems.add(DataError("second", hint="do so", where="f:2"))
    with pytest.raises(UsageError) as caught:
        problems.raise_any()
    assert caught.value.lines() == ["error: first in f:1", "error: second in f:2", "hint: do so"]
    assert caught.value.exit_code == 2


def test_a_wrong_path_is_usage_and_a_full_disk_is_not() -> None:
    missing = from_os_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"))
    full = from_os_error(OSError(errno.ENOSPC, "No space left on device", "a/b"))
    broken = from_os_error(OSError(errno.EIO, "Input/output error", "a/b"))
    assert (missing.exit_code, full.exit_code, broken.exit_code) == (2, 75, 1)
    assert "a/b: No space left" in full.message
    assert full.hint is not None and "run the same command again" in full.hint


def test_nearest() -> None:
    assert nearest("sead", ["seed", "model"]) == "seed"
    assert nearest("zzz", ["seed", "model"]) is None
