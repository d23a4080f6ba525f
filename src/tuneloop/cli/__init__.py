"""The command line: one thin file a command; what they do is in the rooms of the stages."""
