"""The subcommands of ``qsession``, one file each. They need the ``cli`` extra."""
