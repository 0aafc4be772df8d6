"""The translation model: mathematics only, no rank, no logging, no files."""
