"""``python -m protector_guardrails`` is the ``protector`` command."""

from protector_guardrails.cli import main

if __name__ == "__main__":
    main()
