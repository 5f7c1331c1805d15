"""Reads scenarios from YAML: values with their line, error messages, bundled files, the JSON Schema."""
