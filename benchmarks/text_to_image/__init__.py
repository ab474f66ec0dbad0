"""How low bits change a text-to-image model: its pictures, what they show, and every other use of it."""
