"""Representations of embedding tables, and collections of tables."""
