"""CPU time of `memtok --help`, of every command's --help and of --version, beside the promised most.

    python scripts/bench_startup.py [--runs N]

Prints one row each: the least and the median of N runs (CPU time of the child, in ms), and whether
the least is within the promise. Exit code 1 where one is not.
"""

import argparse
import resource
import statistics
import subprocess
import sys

from memtoken_cli.cli import COMMANDS

MOST_MS = {"memtok --help": 100, "memtok --version": 100}
MOST_COMMAND_MS = 200


def cpu_ms(command: list[str]) -> float:
    """User and system time of one child process, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    lines = [["--help"], ["--version"], *([function.__name__, "--help"] for function in COMMANDS)]
    empty = min(cpu_ms([sys.executable, "-c", "pass"]) for _ in range(runs))
    print(f"{'an empty interpreter':28}{empty:8.0f} ms")
    missed = 0
    for line in lines:
        took = [cpu_ms([sys.executable, "-m", "memtoken_cli", *line]) for _ in range(runs)]
        name = " ".join(["memtok", *line])
        most = MOST_MS.get(name, MOST_COMMAND_MS)
        missed += min(took) > most
        verdict = "ok" if min(took) <= most else "MISSED"
        print(f"{name:28}{min(took):8.0f} ms  median {statistics.median(took):4.0f}  most {most}  {verdict}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
