"""Ranks: started on one machine, on several, and as a SLURM job."""
