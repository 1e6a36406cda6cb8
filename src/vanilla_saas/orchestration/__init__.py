"""Agents that work under budgets and talk by agreements (migration 009)."""
