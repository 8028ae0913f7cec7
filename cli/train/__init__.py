"""The `lenstrain` command: a module a subcommand, or a family of them; `app.py` puts them
together."""
