"""Self-supervised pre-training on images."""
