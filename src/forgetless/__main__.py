"""`python -m forgetless`, and the command `forgetless`: signals are handled before anything slow is imported."""

import sys

from forgetless import interruption


def main() -> int:
    """Run the command line of this process.

    Returns:
        The exit code; `forgetless.cli` lists them.
    """
    try:
        with interruption.handled(to_the_end=True):
            from forgetless.cli import main as run

            interruption.stop_if_asked()
            return run()
    except interruption.Interrupted as error:  # nothing was begun
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
