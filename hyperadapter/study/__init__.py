"""Studies: many runs that differ in a few settings, planned, run and reported as one.

study.yaml  ->  config  ->  points + sizes  ->  plan  ->  local, or Slurm  ->  results  ->  report
"""
