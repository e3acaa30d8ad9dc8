"""The report's page: `tables`, `charts` (drawn by `line_chart`) and `galleries`, laid out by ``page.html.jinja``."""
