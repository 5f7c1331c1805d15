"""The measured device: calls that are the same on CPU and CUDA, its hardware, its page cache, its LoRA kernels."""
