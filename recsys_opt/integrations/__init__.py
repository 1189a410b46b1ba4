"""Adapters of optional packages: the only modules that import them."""
