"""Graded judgments of (query, item) pairs."""
