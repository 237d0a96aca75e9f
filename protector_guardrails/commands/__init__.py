"""What the subcommands of ``protector`` do, one file each. :mod:`protector_guardrails.cli` puts them together.

Heavy imports happen within the commands, so that each pays only for what it uses.
"""
