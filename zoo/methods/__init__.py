"""The paper methods, one file and one card each, by modality."""
