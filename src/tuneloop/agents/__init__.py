"""The way in for coding agents: a Model Context Protocol server over the commands (`tuneloop mcp`)."""
