"""Audio and speech."""
