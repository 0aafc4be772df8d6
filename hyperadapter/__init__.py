"""Multilingual machine translation with hyper-adapters, trained at scale."""

__version__ = "0.1.0"
