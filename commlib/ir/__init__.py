"""The levels of a program: Trace, InstructionGraph, Algorithm, and their text forms."""
