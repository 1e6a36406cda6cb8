"""Engines: flows frozen as versions and offered by name, run by those whom their level permits it."""
