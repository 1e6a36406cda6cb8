"""Tools of MCP servers (extra `mcp`), which nodes of the kind tool call as `mcp/<server>/<tool>`."""
