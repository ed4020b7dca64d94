"""A diagnosis for people and programs: terminal, JSON, SARIF, a page."""
