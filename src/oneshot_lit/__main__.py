"""``python -m oneshot_lit``: the command ``oneshot-lit``."""

from oneshot_lit.cli.main import run

if __name__ == "__main__":
    run()
