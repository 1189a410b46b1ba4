"""The `recsys-opt` command."""
