"""The `dlrm` command."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # Each command's module may then be imported without all the others.
    from dlrm_factory.tools.cli.main import main as run

    run()
