"""Decoding with materialised adapters, scoring, and reports."""
