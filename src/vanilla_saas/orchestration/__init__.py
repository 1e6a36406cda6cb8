"""Agents that work with each other under budgets (migration 009)."""
