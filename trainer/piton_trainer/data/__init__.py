"""Data that can resume: texts, and samplers whose whole state is a position."""
