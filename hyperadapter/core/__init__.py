"""Errors, files, configuration files and languages: what everything else stands on. No torch."""
