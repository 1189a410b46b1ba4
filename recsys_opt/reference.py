"""Readable torch versions of the native ops: the specification that tests hold them to."""
