"""The report of a run: tables, curves and figures as one HTML page and as Markdown."""
