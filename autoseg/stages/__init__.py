"""One file a verb: the only code that knows both documents and computation.

Stages never import each other; what they share lies on disk.
"""
