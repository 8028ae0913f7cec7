"""The `lenscache` command: a module for each subcommand or family of them, joined in `app.py`."""
