"""The node: the only trust domain that touches Docker, the kernel and GPUs. It holds a lease key in RAM for one lease."""
