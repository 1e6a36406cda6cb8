"""Orchestration (migration 009): channels on which agents talk, agreements that their messages are held to."""
