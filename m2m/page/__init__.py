"""The report's page: its `parts`, made of `tables`, `charts` and galleries, and laid out by ``page.html.jinja``."""
