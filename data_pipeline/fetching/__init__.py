"""Brings corpora together: wheels, Debian packages, files of the user."""
