"""Datasets: preparing, generating, reading."""
