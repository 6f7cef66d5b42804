"""From crops to masks of whole images."""
