"""Evaluators: bits per dimension."""
