"""Weights in and out: Hugging Face folders, llm.c's .bin, nanoGPT's ckpt.pt, and checkpoints of our own."""
