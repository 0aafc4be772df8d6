"""The command that submits a study to Slurm."""
