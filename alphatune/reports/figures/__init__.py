"""The figures of a report, each drawn once: for a file, as an image, and for a page."""
