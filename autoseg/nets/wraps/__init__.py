"""Wraps, the ways of using a unit: each makes a unit of a unit and leaves the grid alone."""
