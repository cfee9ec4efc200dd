"""memtok: memory tokens for language models."""

__version__ = "0.1.0"
