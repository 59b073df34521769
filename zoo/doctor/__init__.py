"""`zoo doctor`: would this machine, this data, these weights and this config make a run? Said before hours are lost."""
