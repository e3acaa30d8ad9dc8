"""The report's page: `tables`, `charts` (drawn by `line_chart`) and `galleries`, laid out by ``page.html.jinja``.

`claim`, `tasks` and `efficiency` put together a part of it each.
"""
