"""Tools of a person: no archive carries them."""
