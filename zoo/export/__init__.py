"""Trained methods for other tools: safetensors, timm, ONNX, ``torch.export``, the Hugging Face hub; and back."""
