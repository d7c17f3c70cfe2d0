"""What a study found and what it will cost, for people and for programs."""
