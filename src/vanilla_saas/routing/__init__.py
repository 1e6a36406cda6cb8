"""Who runs the work and by what rule it is chosen: workers, strategies, decisions."""
