"""Readers from files to typed batches, and seeded generators of offline tasks."""
