"""The commands of ``qsession``, a file each; they need the ``cli`` extra."""
