"""Aligning language models: supervised fine-tuning, reward models and DPO, on PyTorch and Hugging Face transformers."""
