"""The command line: one file a subcommand. Parse, one library call, render."""
