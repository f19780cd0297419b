"""How do we decide: pure functions from measured numbers to a value and the reason for it.

Nothing here reads a file, knows a document or imports torch. What a network costs comes in as an
argument, so one set of rules serves every network whose cost can be computed.
"""
