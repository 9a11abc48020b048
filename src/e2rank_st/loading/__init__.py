"""A model folder from anywhere → its kind, or a refusal that names the file and the reason, before it is loaded."""
