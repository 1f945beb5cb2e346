"""Speed, as ratios against plain implementations or against a floor, measured alternately in one run."""
