"""Self-training for semantic segmentation."""
