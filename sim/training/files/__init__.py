"""Adapter files: safe reading of headers, a census of folders, and checks against engines."""
