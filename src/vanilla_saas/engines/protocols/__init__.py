"""Engines and agents for those who speak another protocol than ours: as tools (MCP), as agents (A2A)."""
