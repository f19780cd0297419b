"""What only a card can tell, measured in eight minutes on a machine that has one: `make card`."""
