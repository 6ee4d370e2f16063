"""Labelled images: sources, files of records, decoding."""
