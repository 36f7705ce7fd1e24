"""A recipe: the YAML that says everything about a study, read and checked."""
