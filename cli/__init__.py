"""The command line: one thin file a verb, each importing what it needs inside its body."""
