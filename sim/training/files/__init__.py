"""Adapter files: safe reading of headers, a census of folders, and what engines make of them."""
