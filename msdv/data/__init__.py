"""Videos in and out, frames, training clips and what is computed from them once."""
