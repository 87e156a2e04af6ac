"""Evaluators: bits per dimension, and the report of a reproduction."""
