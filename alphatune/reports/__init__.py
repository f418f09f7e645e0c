"""A result as JSON, CSV and Markdown."""
