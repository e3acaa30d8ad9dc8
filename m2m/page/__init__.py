"""The report's page: `tables`, `charts` and galleries (in `tasks`), laid out by ``page.html.jinja``.

`claim`, `tasks` and `efficiency` put together a part of it each.
"""
