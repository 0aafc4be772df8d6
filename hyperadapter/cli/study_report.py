"""The command that reports on a study."""
