"""Recipes: strict YAML, a schema composed from the method's sections, overrides, digests. No torch here."""
