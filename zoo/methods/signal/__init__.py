"""Methods on biosignals."""
