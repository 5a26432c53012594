"""Everything that takes something from outside is given what nobody would think of."""
