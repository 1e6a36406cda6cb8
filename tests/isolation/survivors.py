"""Mutants that nothing in this suite sees, and why each may live. A name that is caught again fails the suite too."""

SURVIVORS: dict[str, str] = {}
