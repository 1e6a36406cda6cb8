"""Computes one step of an execution from what it was given. What follows from its outcome is the database's."""
