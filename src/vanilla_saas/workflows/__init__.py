"""Work in steps: definitions, what they may compute, and how two of them differ."""
