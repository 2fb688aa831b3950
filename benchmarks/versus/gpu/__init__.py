"""The GPU side by side with PyTorch; `benchmarks/gpu_vs_torch.py` runs it."""
