"""What `cpu_vs_torch.py` is made of: nets, sections, fresh processes, tables."""
