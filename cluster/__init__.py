"""Starting processes: on this machine, and later on a Slurm cluster. No torch."""
