"""How features are: how fresh, how often null, how many values, in what range; over time, with rules that alert."""
