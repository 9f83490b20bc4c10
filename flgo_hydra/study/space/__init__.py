"""What varies in a sweep and what is fixed: axes, points, replicates."""
