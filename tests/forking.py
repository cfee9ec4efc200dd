"""Run something in a forked child, with a fault at its K-th write, fsync or rename: no start-up cost."""

import os
import traceback
from collections.abc import Callable

import torch

from memtoken_cli.io import fault

FULL = 7  # exit code of a child whose disk was full


def forked(work: Callable[[], None], what: str = "", k: int = 0) -> int:
    """The child's exit code (0 done, FULL disk full, 1 anything else), or minus the signal that ended it.

    what: "kill" or "enospc", which happens at operation k, counted from 1.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            fault._done = 0
            if what:
                os.environ[fault.VARIABLE] = f"{what}:{k}"
            # a kill loses no page cache, so waiting for the disk would prove nothing here
            os.fsync = lambda fd: None
            work()
            code = 0
        except OSError as error:
            code = FULL if "No space" in str(error) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def operations(work: Callable[[], None]) -> int:
    """How many operations `work` takes, run in a child: the first k whose kill never comes, less one."""
    read, write = os.pipe()

    def counted() -> None:
        work()
        os.write(write, str(fault._done).encode())

    assert forked(counted, "kill", 10**9) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())
