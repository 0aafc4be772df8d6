"""Scaling laws: fitted to measured losses, with intervals and with warnings where they mean little.

points  ->  laws + fit  ->  bootstrap  ->  identify, frontier, multiplier  ->  summary, plots
"""
