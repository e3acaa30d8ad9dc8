"""The report's page: `tables`, `charts`, and of both its `parts`, with galleries; laid out by ``page.html.jinja``."""
