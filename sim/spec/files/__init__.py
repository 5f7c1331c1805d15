"""Reading scenarios from YAML: values that know their line, problems in words, bundled files, the JSON Schema."""
