"""What every test has in common: one thread, no network, no user settings, and the `data` marker."""

from __future__ import annotations

import os
from pathlib import Path

# before anything imports torch or huggingface_hub: both read these then, and so do child processes
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _name in ("MEMTOK_FAULT", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)

import pytest
from hypothesis import settings

settings.register_profile("memtok", deadline=None, max_examples=60)
settings.load_profile("memtok")

DATA = "MEMTOK_DATA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `data` need a folder of public data, which the project does not contain."""
    if os.environ.get(DATA):
        return
    skip = pytest.mark.skip(reason=f"{DATA} names no folder")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(skip)


@pytest.fixture
def data_folder() -> Path:
    """The folder that MEMTOK_DATA names; for tests marked `data`."""
    return Path(os.environ[DATA])
