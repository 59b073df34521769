"""Video with sound."""
