"""Measures: bits/dim, distances and scores of samples, linear probes, receptive fields."""
