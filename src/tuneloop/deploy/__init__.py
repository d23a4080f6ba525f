"""Where one machine is outgrown: hosts that serve an artifact."""
