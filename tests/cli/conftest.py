"""Fixtures of the command-line tests."""

from cli_fixtures import memtok, shots, toy

__all__ = ["memtok", "shots", "toy"]
