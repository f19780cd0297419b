"""Which artefact needs which, and how each is brought up to date.

A verb asks here for what it needs: a fold needs prepared cases, these a plan, this a fingerprint,
and each is made from the raw data where it is not current (`make`). What is trained is put to use
in `use`, looked at in `look`, shown on a phantom in `demo`.
"""
